"""Messages of the advice: what was found, what to do about it, and the line of the job file that does it."""

from __future__ import annotations

from dataclasses import dataclass

from ray_jobs.data.advice import Advice, Rule
from ray_jobs.pages.messages import Message


@dataclass(frozen=True)
class AdviceMessages:
    """The messages of a rule. Placeholders: the fields of `Advice`, the limits of `advice`, and `max_tokens`."""

    problem: Message
    remedy: Message
    line: str = ""
    """What to write below `data:`. Empty: no setting does it."""


_LOOK_FIRST = "Look at the examples below first. "
_LOOK_FIRST_JA = "まず下の例をご確認ください。"

ADVICE: dict[Rule, AdviceMessages] = {
    "no_rows": AdviceMessages(
        Message(
            en="The dataset is empty: {rows:row was|rows were} read, and none is left.",
            ja="データセットが空です。読み込んだ{rows}行のうち、残った行がありません。",
        ),
        Message(
            en="See below which step left the rows out, and correct the file or loosen that step.",
            ja="行を除外したステップを下の表で確認し、ファイルを修正するか、そのステップの設定を緩めてください。",
        ),
    ),
    "no_training_rows": AdviceMessages(
        Message(en="There are no training rows.", ja="学習用の行がありません。"),
        Message(
            en="Add rows, or check the column that divides them into sides.",
            ja="行を追加するか、用途を指定している列をご確認ください。",
        ),
    ),
    "one_label": AdviceMessages(
        Message(
            en="All {rows:training row has|training rows have} the same label: {names}.",
            ja="学習用の{rows}行のラベルがすべて同じです：{names}。",
        ),
        Message(
            en="Add rows with other labels; a model that sorts texts needs two or more.",
            ja="ほかのラベルの行を追加してください。文章を分類するには、2種類以上のラベルが必要です。",
        ),
    ),
    "label_not_trained": AdviceMessages(
        Message(
            en="Labels without any training row, so that the model cannot learn them: {names}.",
            ja="学習用の行がなく、モデルが学習できないラベルがあります：{names}。",
        ),
        Message(
            en="Add training rows with these labels, or remove the {rows:row that has|rows that have} them.",
            ja="これらのラベルの行を学習用に追加するか、該当する{rows}行を削除してください。",
        ),
    ),
    "secrets": AdviceMessages(
        Message(
            en="Secrets in {rows:row|rows} or more: {names}. A model can repeat them to anyone who uses it.",
            ja="{rows}行以上に機密性の高い情報が含まれています：{names}。モデルが利用者への回答に出してしまうおそれがあります。",
        ),
        Message(
            en="Let this line replace the values with placeholders. Change passwords and keys that are still valid.",
            ja="次の設定で値を置き換えてください。使用中のパスワードやキーは変更してください。",
        ),
        "personal_data: redact",
    ),
    "personal_data": AdviceMessages(
        Message(
            en="Personal data in {rows:row|rows} or more: {names}. A model can repeat it.",
            ja="{rows}行以上に個人情報が含まれています：{names}。モデルが回答に出してしまうおそれがあります。",
        ),
        Message(
            en="Let this line replace the values with placeholders, unless the model needs them.",
            ja="モデルに必要な情報でなければ、次の設定で値を置き換えてください。",
        ),
        "personal_data: redact",
    ),
    "leaks": AdviceMessages(
        Message(
            en="{rows:training row has|training rows have} the input of a validation or test row, so that the model "
            "will look better than it is.",
            ja="学習用の{rows}行が、検証用またはテスト用の行と同じ入力を持っています。モデルの性能が実際より高く測定されます。",
        ),
        Message(
            en="Remove these rows from the training file.",
            ja="学習用のファイルからこれらの行を削除してください。",
        ),
    ),
    "side_without_rows": AdviceMessages(
        Message(
            en="No rows on a side: {names}. Nothing can be measured there.",
            ja="行がない用途があります：{names}。その用途では性能を測れません。",
        ),
        Message(
            en="Add rows, or check the column that divides them into sides.",
            ja="行を追加するか、用途を指定している列をご確認ください。",
        ),
    ),
    "conflicts": AdviceMessages(
        Message(
            en="{rows:row contradicts|rows contradict} another row: the input is equal, the label or answer is not.",
            ja="{rows}行がほかの行と矛盾しています。入力が同じなのに、ラベルや回答が異なります。",
        ),
        Message(
            en="Decide which one is right and correct the file. Or leave all of these rows out with this line.",
            ja="どちらが正しいかを決めて、ファイルを修正してください。次の設定で、該当する行をすべて除外することもできます。",
        ),
        "clean: {conflicts: drop}",
    ),
    "label_noise": AdviceMessages(
        Message(
            en="{rows:row has a label that does|rows have labels that do} not seem to fit the text.",
            ja="{rows}行で、ラベルが文章の内容と合っていない可能性があります。",
        ),
        Message(
            en=_LOOK_FIRST + "Correct wrong labels in the file, or remove rows by their ids, as in this line.",
            ja=_LOOK_FIRST_JA
            + "誤ったラベルはファイルで修正するか、次の設定のようにIDを指定して行を削除してください。",
        ),
        'clean: {{drop_rows: ["{example}"]}}',
    ),
    "few_rows": AdviceMessages(
        Message(
            en="Few training rows: {rows} below the {few_rows} from which on training usually pays off.",
            ja="学習用の行が不足しています。効果が出やすい目安の{few_rows}行まで、あと{rows}行必要です。",
        ),
        Message(en="Add rows like those that you have.", ja="同じような内容の行を追加してください。"),
    ),
    "few_rows_of_labels": AdviceMessages(
        Message(
            en="Labels with fewer than {few_rows} training rows: {names}.",
            ja="学習用の行が{few_rows}行に満たないラベルがあります：{names}。",
        ),
        Message(
            en="Add {rows:row|rows} in all, so that each has {few_rows}, or merge labels of similar meaning.",
            ja="各ラベルが{few_rows}行になるよう合計{rows}行を追加するか、意味の近いラベルを1つにまとめてください。",
        ),
    ),
    "label_not_measured": AdviceMessages(
        Message(
            en="Labels without a row on the validation or test side: {names}. Mistakes with them stay unseen.",
            ja="検証用またはテスト用の行がないラベルがあります：{names}。これらのラベルを誤っても気づけません。",
        ),
        Message(
            en="Add rows with these labels, so that each side gets some.",
            ja="どの用途にも割り当てられるよう、これらのラベルの行を追加してください。",
        ),
    ),
    "imbalance": AdviceMessages(
        Message(
            en="The most frequent label has {ratio} times the rows of the rarest. Rare ones: {names}.",
            ja="最も多いラベルの行数が、最も少ないラベルの{ratio}倍あります。少ないラベル：{names}。",
        ),
        Message(
            en="Add rows of the rare labels ({rows} in all make the factor less than {imbalance}), and judge the model "
            "by macro_f1, in which every label counts the same, not by accuracy.",
            ja="少ないラベルの行を追加してください（合計{rows}行で差が{imbalance}倍未満になります）。"
            "モデルの評価には、accuracyではなく、すべてのラベルを同じ重みで扱うmacro_f1をお使いください。",
        ),
    ),
    "many_dropped": AdviceMessages(
        Message(
            en="{share} of the rows that were read ({rows}) are not in the dataset.",
            ja="読み込んだ行の{share}（{rows}行）がデータセットに入っていません。",
        ),
        Message(
            en="Check in the table of steps that this is what you want.",
            ja="意図したとおりかどうか、ステップの表でご確認ください。",
        ),
    ),
    "exact_duplicates": AdviceMessages(
        Message(
            en="{rows:row is an exact copy|rows are exact copies} ({share}). The model gives them too much weight.",
            ja="{rows}行（{share}）が完全に重複しています。モデルがこれらの行を重視しすぎてしまいます。",
        ),
        Message(en="Keep one row of each with this line.", ja="次の設定で、重複した行を1行だけ残してください。"),
        "clean: {exact_duplicates: drop}",
    ),
    "near_duplicates": AdviceMessages(
        Message(
            en="{rows:row is|rows are} nearly equal to another ({share}). The model gives them too much weight.",
            ja="{rows}行（{share}）がほかの行とほぼ同じ内容です。モデルがこれらの行を重視しすぎてしまいます。",
        ),
        Message(
            en=_LOOK_FIRST + "If the rows say the same, keep one of each group with this line.",
            ja=_LOOK_FIRST_JA + "同じ内容であれば、次の設定で各グループの1行だけを残してください。",
        ),
        "clean: {near_duplicates: drop}",
    ),
    "mojibake": AdviceMessages(
        Message(
            en="{rows:text is|texts are} garbled, and the model would learn to write so.",
            ja="{rows}行に文字化けがあります。モデルが文字化けまで学習してしまいます。",
        ),
        Message(en="Repair them with this line.", ja="次の設定で修復してください。"),
        "clean: {mojibake: repair}",
    ),
    "outliers": AdviceMessages(
        Message(
            en="{rows:text is|texts are} very unlike the others.",
            ja="{rows}行が、ほかの行と大きく異なります。",
        ),
        Message(
            en=_LOOK_FIRST + "If they are mistakes, leave them out with this line.",
            ja=_LOOK_FIRST_JA + "不要な行であれば、次の設定で除外してください。",
        ),
        "clean: {outliers: drop}",
    ),
    "language": AdviceMessages(
        Message(
            en="{rows:text seems|texts seem} to be in another language than those that the job file names.",
            ja="{rows}行が、ジョブファイルで指定した言語以外で書かれている可能性があります。",
        ),
        Message(
            en=_LOOK_FIRST + "Remove rows by their ids, as in this line.",
            ja=_LOOK_FIRST_JA + "不要な行は、次の設定のようにIDを指定して削除してください。",
        ),
        'clean: {{drop_rows: ["{example}"]}}',
    ),
    "too_long": AdviceMessages(
        Message(
            en="{rows:row is|rows are} longer than max_tokens ({max_tokens}), which stops the job; the longest has "
            "{longest_tokens:token|tokens}.",
            ja="{rows}行がmax_tokens（{max_tokens}トークン）より長く、ジョブはここで停止します。最も長い行は{longest_tokens}トークンです。",
        ),
        Message(
            en="Raise max_tokens if the base and the memory allow it, shorten the rows, or leave them out with this "
            "line.",
            ja="ベースモデルとメモリに余裕があればmax_tokensを上げ、難しければ行を短くしてください。次の設定にすると、長い行を除外します。",
        ),
        "too_long: drop",
    ),
    "too_long_left_out": AdviceMessages(
        Message(
            en="{rows:row is|rows are} left out, being longer than max_tokens ({max_tokens}); the longest has "
            "{longest_tokens:token|tokens}.",
            ja="{rows}行がmax_tokens（{max_tokens}トークン）より長いため除外されます。最も長い行は{longest_tokens}トークンです。",
        ),
        Message(
            en="Raise max_tokens if the base and the memory allow it, or shorten the rows.",
            ja="ベースモデルとメモリに余裕があればmax_tokensを上げ、難しければ行を短くしてください。",
        ),
    ),
    "answers_cut": AdviceMessages(
        Message(
            en="{rows:row loses|rows lose} a part of the answer at max_tokens ({max_tokens}), so that the model learns "
            "to stop in the middle; the longest has {longest_tokens:token|tokens}.",
            ja="{rows}行の回答がmax_tokens（{max_tokens}トークン）で途中までになり、モデルが途中で止まることを覚えてしまいます。"
            "最も長い行は{longest_tokens}トークンです。",
        ),
        Message(
            en="Raise max_tokens, or leave these rows out with this line.",
            ja="max_tokensを上げるか、次の設定でこれらの行を除外してください。",
        ),
        "too_long: drop",
    ),
    "nothing_trained": AdviceMessages(
        Message(
            en="{rows:row trains|rows train} nothing: no answer in it has a text and a weight of 1.",
            ja="{rows}行には、学習の対象になる回答（本文があり、weightが1のもの）がありません。",
        ),
        Message(
            en="Add the answers, or remove the rows.",
            ja="回答を追加するか、これらの行を削除してください。",
        ),
    ),
    "long_texts": AdviceMessages(
        Message(
            en="{rows:text has|texts have} {long_characters} characters or more.",
            ja="{rows}行の文章が{long_characters}文字以上です。",
        ),
        Message(
            en="Shorten or divide them. A row with more tokens than max_tokens ({max_tokens} unless set) stops the "
            "job; with this line it is left out instead.",
            ja="文章を短くするか、分割してください。max_tokens（初期値は{max_tokens}トークン）を超える行があるとジョブは停止しますが、"
            "次の設定にすると、その行を除外して続行します。",
        ),
        "too_long: drop",
    ),
    "invisible": AdviceMessages(
        Message(
            en="{rows:text has|texts have} invisible characters, which the model reads as part of the words.",
            ja="{rows}行に見えない文字が含まれています。モデルはこれらの文字も言葉の一部として読み取ります。",
        ),
        Message(en="Remove them with this line.", ja="次の設定で取り除いてください。"),
        "clean: {invisible: remove}",
    ),
    "boilerplate": AdviceMessages(
        Message(
            en="{rows:text has|texts have} lines that many others have too, such as a signature.",
            ja="{rows}行に、署名など、ほかの多くの行と共通する定型文が含まれています。",
        ),
        Message(
            en=_LOOK_FIRST + "If the lines say nothing about the text, remove them with this line.",
            ja=_LOOK_FIRST_JA + "内容に関係のない定型文であれば、次の設定で取り除いてください。",
        ),
        "clean: {boilerplate: remove}",
    ),
}


def line(advice: Advice) -> str:
    """The line of the job file for it; empty: none, or one that needs an example of which there is none."""
    text = ADVICE[advice.rule].line
    if "{{" not in text:
        return text
    return text.format(example=advice.example) if advice.example else ""

"""Messages of the page of a preparation: its sections, the steps and the kinds of personal data.

Those of the advice are in `advice_messages`.
"""

from __future__ import annotations

from typing import Literal

from ray_jobs.data.preparation import Step
from ray_jobs.pages.messages import Message
from ray_jobs.spec.personal_data import Kind

TITLE = Message(en="Your data, prepared for training", ja="学習データの準備結果")

READ = Message(
    en="{read:row was|rows were} read; {kept:row is|rows are} in the dataset.",
    ja="{read}行を読み込み、そのうち{kept}行がデータセットに入りました。",
)
LEFT_OUT = Message(
    en="{rows:row was|rows were} left out ({share}): see “What each step did” below.",
    ja="{rows}行（{share}）は除外されました。理由は下の「各ステップの結果」をご覧ください。",
)
LEFT_OUT_BY_NO_STEP = Message(
    en="{rows} of these were left out by none of the steps, for example because of max_rows in the job file.",
    ja="このうち{rows}行は、ジョブファイルのmax_rowsなど、ステップ以外の理由で除外されました。",
)
DIVIDED = Message(en="The rows are divided into {sides}.", ja="内訳は、{sides}です。")
SIDE_ROWS: dict[str, Message] = {
    "train": Message(en="{rows} to train", ja="学習用{rows}行"),
    "validation": Message(en="{rows} to validate", ja="検証用{rows}行"),
    "test": Message(en="{rows} to test", ja="テスト用{rows}行"),
}
SIDES_EXPLAINED = Message(
    en="The model learns from the training rows alone. Validation rows serve to choose between settings, and test rows "
    "to measure the finished model, since it has never seen them.",
    ja="モデルが学習するのは学習用の行だけです。検証用の行は設定を選ぶため、テスト用の行は完成したモデルの性能を測るために使います。"
    "どちらもモデルが学習していない行なので、性能を正しく確かめられます。",
)
LABELS_COUNTED = Message(
    en="The rows have {labels:label|different labels}; the most frequent is “{most}” ({most_rows:row|rows}), the "
    "rarest “{least}” ({least_rows:row|rows}).",
    ja="ラベルは{labels}種類です。最も多いのは「{most}」（{most_rows}行）、最も少ないのは「{least}」（{least_rows}行）です。",
)
ONE_LABEL = Message(en="All rows have the label “{label}”.", ja="すべての行のラベルが「{label}」です。")
CHANGED = Message(
    en="These steps changed texts: {steps}.",
    ja="次のステップで一部の文章を変更しました：{steps}。",
)
STEP_ROWS = Message(en="{step} ({rows:row|rows})", ja="{step}（{rows}行）")

TASK = Message(en="task", ja="タスク")
SOURCES = Message(en="files", ja="ファイル")
ROWS_READ = Message(en="rows read", ja="読み込んだ行")
ROWS_KEPT = Message(en="rows in the dataset", ja="データセットの行")
LABELS = Message(en="labels", ja="ラベルの種類")
AND_MORE = Message(en="{names} and {more} more", ja="{names}、ほか{more}件")

FIX_FIRST = Message(en="What to fix first", ja="最初に直すべきこと")
FIX_CAPTION = Message(
    en="The most important first. A line of the job file belongs under “data:” there. Put several lines that begin "
    "with “clean:” into one, such as clean: {{mojibake: repair, conflicts: drop}}.",
    ja="重要なものから順に並べています。「ジョブファイルの設定」の内容は、ジョブファイルの「data:」の下に書いてください。"
    "「clean:」で始まる設定が複数あるときは、clean: {{mojibake: repair, conflicts: drop}} のように"
    "1行にまとめてください。",
)
NOTHING_TO_FIX = Message(
    en="The checks that ran found nothing that you need to fix.",
    ja="実行した確認の範囲では、直す必要のある点は見つかりませんでした。",
)
IMPORTANCE = Message(en="importance", ja="重要度")
PROBLEM = Message(en="what was found", ja="見つかったこと")
REMEDY = Message(en="what to do", ja="対処方法")
LINE = Message(en="line of the job file", ja="ジョブファイルの設定")
IMPORTANCES: tuple[Message, ...] = (
    Message(en="required", ja="必須"),
    Message(en="recommended", ja="推奨"),
    Message(en="worth a look", ja="任意"),
)
"""In the order of `advice.Importance`."""

SIDES = Message(en="Sides and labels", ja="データの分割とラベル")
SIDES_ONLY = Message(en="Sides", ja="データの分割")
SIDES_CAPTION = Message(en="Rows of each side.", ja="用途ごとの行数です。")
LABELS_CAPTION = Message(
    en="Rows of each label, by side. A model learns a label well only if it has enough rows.",
    ja="ラベルごとの行数を用途別に示しています。行数が十分にないラベルは、うまく学習できません。",
)
LABELS_SHOWN = Message(
    en="The figure has the {shown} most frequent and rarest of {labels} labels.",
    ja="グラフには、{labels}種類のうち行数が多いラベルと少ないラベルを合わせて{shown}種類表示しています。",
)
LABELS_LISTED = Message(
    en="The table has {shown} of them; this report in JSON has all.",
    ja="表に載せたのはそのうち{shown}種類です。すべてのラベルはJSON形式のレポートにあります。",
)
LABEL = Message(en="label", ja="ラベル")
ROWS = Message(en="rows", ja="行数")
TOTAL = Message(en="total", ja="合計")
SIDE = Message(en="side", ja="用途")
SIDE_NAMES: dict[str, Message] = {
    "train": Message(en="training", ja="学習用"),
    "validation": Message(en="validation", ja="検証用"),
    "test": Message(en="test", ja="テスト用"),
}
LENGTHS = Message(en="Lengths", ja="文章の長さ")
LENGTHS_CAPTION = Message(
    en="Rows of the dataset by the characters of their texts; each bar covers twice the range of the one before. "
    "Longer texts take more time and memory to train.",
    ja="データセットの行を文章の文字数で分けています。棒が1つ右へ進むごとに、文字数の範囲は2倍になります。"
    "長い文章ほど、学習に時間とメモリが必要です。",
)
CHARACTERS = Message(en="characters", ja="文字数")
NO_LENGTHS = Message(en="The dataset has no rows.", ja="データセットに行がありません。")

STEPS = Message(en="What each step did", ja="各ステップの結果")
STEPS_CAPTION = Message(
    en="In the order in which the steps ran. One row may be in several of them.",
    ja="実行した順に並べています。1つの行が複数のステップに該当することもあります。",
)
NO_STEPS = Message(en="No step ran on these rows.", ja="これらの行に対して実行されたステップはありません。")
STEP = Message(en="step", ja="ステップ")
MEANING = Message(en="what it does", ja="内容")
ACTION = Message(en="result", ja="処理")
DETAIL = Message(en="of these", ja="内訳")
ACTIONS: dict[Literal["report", "list", "change", "drop"], Message] = {
    "report": Message(en="counted; the rows are unchanged", ja="件数の確認のみ（行は変更していません）"),
    "list": Message(
        en="listed for you to check; the rows are unchanged", ja="確認用に一覧を表示（行は変更していません）"
    ),
    "change": Message(en="texts changed", ja="文章を変更"),
    "drop": Message(en="rows left out", ja="行を除外"),
}

EXAMPLES = Message(en="{step}: examples", ja="{step}：例")
SHOWN_SAMPLES = Message(en="Shown: {shown} of {rows:row|rows}.", ja="{rows}行のうち{shown}行を表示しています。")
STORED_SAMPLES = Message(
    en="This report in JSON has {stored} of them.", ja="JSON形式のレポートには{stored}行が入っています。"
)
REVIEW = Message(
    en="The most suspicious come first. A program found these rows and can be wrong: look at them before you remove "
    'any. To remove rows, write their ids into the job file under “data:”, such as clean: {{drop_rows: ["{row}"]}}.',
    ja="疑わしいものから順に並べています。プログラムによる判定のため、誤りもあります。削除する前に必ず内容をご確認ください。"
    '行を削除するには、clean: {{drop_rows: ["{row}"]}} のように、'
    "行のIDをジョブファイルの「data:」の下に書いてください。",
)
PLACE = Message(en="place and id", ja="場所とID")
BEFORE = Message(en="before", ja="変更前")
AFTER = Message(en="after", ja="変更後")
TEXT = Message(en="text", ja="文章")
REASON = Message(en="reason", ja="理由")

CLUSTERS = Message(en="Groups of near duplicates", ja="ほぼ同じ内容の行のグループ")
CLUSTERS_CAPTION = Message(
    en="Rows whose texts are almost equal, the largest groups first, with a few texts of each.",
    ja="文章がほぼ同じ行を、件数の多いグループから順に示しています。各グループの文章をいくつか例示します。",
)
CLUSTER_ROWS = Message(en="rows", ja="行数")
CLUSTER_KEPT = Message(en="in the dataset", ja="データセットに残った行")
CLUSTER_TEXTS = Message(en="some of the texts", ja="文章の例")

PERSONAL = Message(en="Personal data and secrets", ja="個人情報と機密情報")
PERSONAL_CAPTION = Message(
    en="Rows with each kind. Programs find these values by their form, so some are missed and some are false alarms. "
    "Values that were found are masked on this page; a value that was missed can be in an example.",
    ja="種類ごとの行数です。書式をもとに自動で検出しているため、見落としや誤検出があります。検出した値はこのページでは伏せてありますが、"
    "見落とした値が例の中に残っている可能性があります。",
)
NO_PERSONAL = Message(en="None was found.", ja="見つかりませんでした。")
NOT_SEARCHED = Message(en="The rows were not searched for it.", ja="個人情報の検出は実行されていません。")
KIND = Message(en="kind", ja="種類")

NOTICES = Message(en="Notices", ja="お知らせ")
NOTICES_CAPTION = Message(
    en="What was guessed, converted or not used while the files were read.",
    ja="ファイルの読み込み時に推測、変換した点や、使用しなかったものです（英語で表示されます）。",
)
NO_NOTICES = Message(en="There are none.", ja="ありません。")
NOTICE = Message(en="notice", ja="内容")
REASONS_IN_ENGLISH = Message(en="", ja="「場所」と「理由」は英語で表示されます。")

STEP_NAMES: dict[Step, tuple[Message, Message]] = {
    "mojibake": (
        Message(en="Garbled characters", ja="文字化け"),
        Message(
            en="finds texts that were read in the wrong encoding, such as “Ã©” for “é”",
            ja="「あい」が「縺ゅ＞」になるなど、誤った文字コードで読み込まれた文章を見つけます",
        ),
    ),
    "invisible": (
        Message(en="Invisible characters", ja="見えない文字"),
        Message(
            en="finds characters that are not shown but that a model reads, such as a zero-width space",
            ja="ゼロ幅スペースなど、画面には表示されなくてもモデルが読み取る文字を見つけます",
        ),
    ),
    "nfkc": (
        Message(en="One form of each character", ja="全角・半角の統一"),
        Message(
            en="writes variants of a character in one way, such as “Ａ” as “A” (Unicode NFKC)",
            ja="「Ａ」と「A」、「ｱ」と「ア」のような表記の違いをそろえます（UnicodeのNFKC）",
        ),
    ),
    "boilerplate": (
        Message(en="Repeated lines", ja="定型文"),
        Message(
            en="finds lines that many rows have in common, such as signatures and disclaimers",
            ja="署名や免責事項など、多くの行に共通する決まり文句を見つけます",
        ),
    ),
    "length": (
        Message(en="Too short or too long", ja="短すぎる・長すぎる行"),
        Message(
            en="compares each text with the limits in the job file",
            ja="文章の長さを、ジョブファイルの上限・下限と比べます",
        ),
    ),
    "personal_data": (
        Message(en="Personal data and secrets", ja="個人情報と機密情報"),
        Message(
            en="finds e-mail addresses, phone numbers, API keys and other values that a model could repeat",
            ja="メールアドレス、電話番号、APIキーなど、モデルが回答に出してしまうおそれのある値を見つけます",
        ),
    ),
    "exact_duplicates": (
        Message(en="Exact duplicates", ja="完全な重複"),
        Message(en="finds rows that are equal to another row", ja="ほかの行とまったく同じ行を見つけます"),
    ),
    "near_duplicates": (
        Message(en="Near duplicates", ja="ほぼ同じ内容の行"),
        Message(
            en="finds rows that differ from another row in a few characters",
            ja="ほかの行と数文字しか違わない行を見つけます",
        ),
    ),
    "conflicts": (
        Message(en="Contradictions", ja="矛盾する行"),
        Message(
            en="finds equal inputs with different labels or answers",
            ja="入力が同じなのに、ラベルや回答が異なる行を見つけます",
        ),
    ),
    "outliers": (
        Message(en="Unusual rows", ja="ほかと大きく異なる行"),
        Message(
            en="finds texts that are much longer than the others, or consist mostly of symbols or repetitions",
            ja="極端に長い文章や、記号や繰り返しがほとんどの文章を見つけます",
        ),
    ),
    "language": (
        Message(en="Other languages", ja="想定外の言語"),
        Message(
            en="finds texts in a language that the job file does not name",
            ja="ジョブファイルで指定していない言語の文章を見つけます",
        ),
    ),
    "label_noise": (
        Message(en="Suspicious labels", ja="誤りが疑われるラベル"),
        Message(
            en="finds rows whose label does not seem to fit their text",
            ja="文章の内容とラベルが合っていないと思われる行を見つけます",
        ),
    ),
    "drop_rows": (
        Message(en="Rows that you removed", ja="指定により削除した行"),
        Message(en="leaves out the rows whose ids the job file lists", ja="ジョブファイルにIDが書かれた行を除外します"),
    ),
    "leaks": (
        Message(en="Training rows that would give the test away", ja="検証用・テスト用と重なる学習用の行"),
        Message(
            en="finds training rows whose input is also a validation or test row, which would make the model look "
            "better than it is",
            ja="検証用やテスト用と入力が同じ学習用の行を見つけます。残しておくと、モデルの性能が実際より高く測定されてしまいます",
        ),
    ),
}
"""Name of each step, and what it does."""

COUNT_NAMES = {
    "repairable": Message(en="repairable", ja="修復可能"),
    "beyond repair": Message(en="beyond repair", ja="修復不能"),
    "too short": Message(en="too short", ja="短すぎる"),
    "too long": Message(en="too long", ja="長すぎる"),
    "clusters": Message(en="clusters", ja="グループ"),
    "inputs": Message(en="inputs", ja="入力"),
}
"""Names of the counts within a step; others, such as languages, are names already."""

KIND_NAMES: dict[Kind, Message] = {
    "private_key": Message(en="private keys", ja="秘密鍵"),
    "api_key": Message(en="API keys, tokens and passwords", ja="APIキー、トークン、パスワード"),
    "email": Message(en="e-mail addresses", ja="メールアドレス"),
    "credit_card": Message(en="credit card numbers", ja="クレジットカード番号"),
    "my_number": Message(en="My Number (Japanese individual numbers)", ja="マイナンバー（個人番号）"),
    "corporate_number": Message(en="Japanese corporate numbers", ja="法人番号・インボイス登録番号"),
    "bank_account": Message(en="bank accounts", ja="銀行口座番号"),
    "passport": Message(en="passport numbers", ja="パスポート番号"),
    "driving_licence": Message(en="driving licence numbers", ja="運転免許証番号"),
    "address": Message(en="Japanese street addresses", ja="住所"),
    "postal_code": Message(en="Japanese postal codes", ja="郵便番号"),
    "phone": Message(en="phone numbers", ja="電話番号"),
    "ip_address": Message(en="IP addresses", ja="IPアドレス"),
    "person": Message(en="names of people", ja="人名"),
}

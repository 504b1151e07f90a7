"""Support requests in English and Japanese, German and French sentences: material to plant faults in.

Written after the rules, and not used to change them.
"""

from __future__ import annotations

from random import Random

ENGLISH: dict[str, tuple[str, ...]] = {
    "billing": (
        "My card was charged twice for the same invoice last Tuesday.",
        "Could you refund the second payment before the end of the month?",
        "The receipt shows a tax rate that does not apply in our country.",
        "We switched to the yearly plan but still get monthly invoices.",
        "Please send the invoice with our purchase order number on it.",
        "The discount from your newsletter was not taken off the price.",
    ),
    "access": (
        "I cannot log in since the password was changed yesterday.",
        "The link in the reset message says that it has expired.",
        "Two colleagues were locked out after the update of the directory.",
        "The code for two-factor login never arrives on my phone.",
        "Our new administrator has no permission to invite members.",
        "Single sign-on sends me back to the login page every time.",
    ),
}
JAPANESE: dict[str, tuple[str, ...]] = {
    "billing": (
        "先週の請求書について、同じ金額が二回引き落とされていました。",
        "月末までに二回目の支払いを返金していただけますか。",
        "年払いに変更したのに、毎月の請求書がまだ届きます。",
        "領収書に記載されている税率が間違っているようです。",
        "注文番号を入れた請求書を再発行してください。",
        "キャンペーンの割引が料金に反映されていません。",
    ),
    "access": (
        "昨日パスワードを変更してから、ログインできなくなりました。",
        "再設定のメールにあるリンクの期限が切れていると表示されます。",
        "二段階認証のコードが携帯電話に届きません。",
        "新しい管理者がメンバーを招待する権限を持っていません。",
        "シングルサインオンを使うと、毎回ログイン画面に戻されます。",
        "更新後に同僚二人がアカウントから締め出されました。",
    ),
}
OTHERS = (
    "Die Rechnung für März wurde zweimal bezahlt – können Sie den zweiten Betrag zurücküberweisen?",
    "Größe und Gewicht des Geräts stehen auf der Rückseite der Verpackung.",
    "Le mot de passe que j’ai reçu hier ne fonctionne déjà plus, pouvez-vous m’aider ?",
    "Où est passée la facture du mois d’août ? Elle était jointe à votre dernier courriel.",
    "¿Por qué no aparece el descuento en la factura de este año?",
    "The team said: “thank you” 😀👍🏽 — and the café’s naïve façade stayed.",
    "家族👨‍👩‍👧‍👦と🏳️‍🌈の絵文字、ﾊﾝｶｸ、①②③、㈱、髙橋さん、﨑、糸が縺れた。",
    "畳は繧繝縁です。",
    "窶れた顔をしている。",
    "می‌خواهم رمز عبورم را عوض کنم.",
    "क्‍ष और श्रीमान",
    'def price(x):\n\treturn f"{x:,.2f} €"  # naïve: Ã is a letter too\n',
    "SELECT * FROM t WHERE name = 'O''Brien' AND note LIKE '%½%';",
)
"""Texts that are right, with what repairs could mistake."""


def requests(count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct (text, label): three to five sentences of one topic in one language, with an order number of its own."""
    random, found = Random(seed), list[tuple[str, str]]()
    for number in range(count):
        language, label = random.choice((ENGLISH, JAPANESE)), random.choice(("billing", "access"))
        chosen = random.sample(language[label], random.randint(3, 5))
        word = "".join(random.choice("bcdfghjklmnpqrstvwxyz") for _ in range(24))
        found.append((f"{' '.join(chosen)} {word}{number}", label))
    return found


def edited(text: str, edits: int, random: Random) -> str:
    """The text with so many characters replaced, removed or put in."""
    characters = list(text)
    for _ in range(edits):
        at = random.randrange(len(characters))
        characters[at] = random.choice(("", characters[at] + "q", "z", "の"))
    return "".join(characters)

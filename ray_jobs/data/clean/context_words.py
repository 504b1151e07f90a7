"""Context words: what a sentence calls the number that follows, in Japanese and English.

The label closest before a number decides its kind. Besides the kinds there are the labels `order` (numbers of orders,
parcels, products) and `version`, which rule a kind out.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import Literal

from ray_jobs.data.clean.finding import FoldedText
from ray_jobs.data.clean.folding import fold
from ray_jobs.spec.personal_data import Kind

Label = Kind | Literal["order", "version"]

_REACH = 60
"""Characters before a number in which a label counts."""

_JAPANESE: dict[Label, str] = {
    "credit_card": "クレジット|クレカ|カード|デビット",
    "my_number": "マイナンバー(?:カード)?|個人番号(?:カード)?",
    "corporate_number": "法人番号|登録番号|インボイス番号|適格請求書発行事業者",
    "bank_account": "口座|普通預金|当座預金|普通|当座|振込先|振り込み先|貯金",
    "passport": "旅券|パスポート",
    "driving_licence": "免許",
    "phone": "電話|℡|☎|📞|📱|携帯|連絡先|問い?合わ?せ先|ファックス|ファクス|フリーダイヤル|内線|直通|代表",
    "postal_code": "〒|郵便番号",
    "ip_address": "アドレス|サーバー?|ホスト|接続元|接続先|アクセス元",
    "version": "バージョン|リリース|ビルド|ファーム|ドライバ|アップデート|第|章|節|項",
    "order": (
        "注文|伝票|追跡|送り状|問い?合わ?せ番号|請求書番号|請求番号|製品|型番|商品|品番|シリアル|管理番号|会員番号|"
        "受付番号|予約番号|顧客番号|社員番号|学籍番号|受験番号|案件|チケット|契約番号|取引番号|整理番号|申込番号|決済番号|"
        "発注|納品|在庫|ロット|コード|バーコード|日時|タイムスタンプ|金額|合計|価格"
    ),
}
_ENGLISH: dict[Label, str] = {
    "credit_card": "credit|debit|cards?|visa|mastercard|amex|american express|jcb|diners|unionpay",
    "my_number": "(?:my[ _]?number|individual number)(?: card)?",
    "corporate_number": "corporate number|corporate_number|registration number",
    "bank_account": ("bank account|bank_account|account (?:number|no|num|#)|account_number|acct|account|a/c|iban|bank"),
    "passport": "passport",
    "driving_licence": "driver'?s?.?licen[sc]e|driving.?licen[sc]e|licen[sc]e (?:number|no)|dl (?:number|no)",
    "phone": (
        "tel|phone|telephone|mobile|cell|cellphone|call|dial|fax|whatsapp|contact|reach|voicemail|hotline|helpline"
    ),
    "postal_code": "postal.?code|post ?code|zip",
    "ip_address": "ips?|ipv[46]|addr|address|server|host|hostname|ping|ssh|https?|dns|subnet|gateway|client|remote",
    "version": (
        "versions?|ver|v|release|build|firmware|driver|updated?|upgrade|rev|revision|section|chapter|clause|oid"
    ),
    "order": (
        "order|orders|tracking|shipment|parcel|invoice|ticket|serial|part|sku|ref|reference|model|case|item|product|"
        "confirmation|booking|reservation|isbn|issn|ean|upc|jan|po|purchase|transaction|batch|lot|imei|timestamp|"
        "member|membership|employee|student|customer|policy|job|build id|run|revision id|total|price|amount|barcode"
    ),
}


def _compiled() -> re.Pattern[str]:
    """One group for each label and language. The lookaheads skip positions where no word begins."""
    japanese = {label: fold(words) for label, words in _JAPANESE.items()}
    firsts = re.escape("".join({word[0] for words in japanese.values() for word in words.split("|")}))
    english = "|".join(f"({words})" for words in _ENGLISH.values())
    return re.compile(
        rf"(?=[{firsts}])(?:{'|'.join(f'({words})' for words in japanese.values())})"
        rf"|(?=[a-z])(?<![a-z])(?:{english})(?![a-z])"
    )


_PATTERN = _compiled()
_GROUPS: tuple[Label, ...] = (*_JAPANESE, *_ENGLISH)
_OPENING = re.compile(r" ?[(\[] ?")


class Labels:
    """The labels of a text, read once."""

    def __init__(self, text: FoldedText) -> None:
        self._text = text
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._labels: list[Label] = []
        for match in _PATTERN.finditer(text.lowered):
            if match.lastindex is not None:
                self._starts.append(match.start())
                self._ends.append(match.end())
                self._labels.append(_GROUPS[match.lastindex - 1])
        self.present = frozenset(self._labels)

    def of(self, start: int, end: int, *, versions: bool = False) -> Label | None:
        """The label of the number at [start, end): the closest before it, or one in brackets right after it.

        `version` is a label only with `versions`: its words (第, release) stand before other numbers too.
        """
        if not self._labels:
            return None
        if opening := _OPENING.match(self._text.folded, end):
            place = bisect_left(self._starts, opening.end())
            if place < len(self._starts) and self._starts[place] == opening.end():
                return self._labels[place]
        place = bisect_right(self._ends, start) - 1
        while place >= 0 and self._ends[place] > start - _REACH:
            if versions or self._labels[place] != "version":
                return self._labels[place]
            place -= 1
        return None

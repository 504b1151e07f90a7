"""Japanese street addresses: prefecture or municipality, district, block numbers, and what names a room."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ray_jobs.data.clean.finding import Finding, FoldedText

_PREFECTURE = (
    "東京都|北海道|京都府|大阪府|(?:青森|岩手|宮城|秋田|山形|福島|茨城|栃木|群馬|埼玉|千葉|神奈川|新潟|富山|石川|福井|山梨"
    "|長野|岐阜|静岡|愛知|三重|滋賀|兵庫|奈良|和歌山|鳥取|島根|岡山|広島|山口|徳島|香川|愛媛|高知|福岡|佐賀|長崎|熊本"
    "|大分|宮崎|鹿児島|沖縄)県"
)
_NUMBER = "(?:[0-9]{1,4}|[一二三四五六七八九十百]{1,4})"
_BLOCKS = (
    rf"(?:{_NUMBER} ?丁目(?: ?{_NUMBER} ?(?:番地?|-)?)?"
    r"(?: ?[の-]? ?[0-9]{1,4}(?: ?号(?!室))?)?(?:-[0-9]{1,4}){0,2}"
    rf"|{_NUMBER} ?番地?(?: ?[の-]? ?[0-9]{{1,4}}(?:号(?!室)|(?![0-9号])))?"
    r"|[0-9]{1,4}(?:-[0-9]{1,4}){1,3})"
)
_ROOM = (
    r"(?:[ 　]?[^\s0-9、。,.()「」でにはがをへと]{0,20}[ 　]?"
    r"(?:[0-9]{1,4}(?:号室?|階|F)|(?:ビル|マンション|タワー|ハイツ|コーポ|荘)[ 　]?[0-9]{1,4}(?![0-9年月日円])))?"
)
_PLACE = r"[^\s0-9、。,.()「」:;]"
_WITH_PREFECTURE = re.compile(
    rf"(?:{_PREFECTURE})[ ]?(?P<place>{_PLACE}{{1,24}}?(?:[ ]{_PLACE}{{1,16}}?)?)[ ]?(?P<blocks>{_BLOCKS}){_ROOM}"
)
_WITHOUT_PREFECTURE = re.compile(
    rf"(?P<place>[一-龠々ァ-ヶ-]{{1,6}}[市区郡町村]{_PLACE}{{0,16}}?)[ ]?(?P<blocks>{_NUMBER}丁目 ?[0-9]{{1,4}}"
    rf"(?:番地?(?: ?[0-9]{{1,4}}号(?!室))?|(?:-[0-9]{{1,4}}){{1,2}})){_ROOM}"
)
_COUNTED = re.compile(
    r"[ ]?(?:年|月|日|階|時|分|人|名|件|店|社|個|回|位|倍|割|点|歳|万|億|円|%|km|か|ヶ|ポイント|対|世帯|勝)"
)
"""Units: a range such as `2-3日` is no block number."""
_PARTICLES = "でがをにはへともや"


def find_addresses(text: FoldedText) -> Iterator[Finding]:
    """Detector of `address`."""
    folded = text.folded
    if any(mark in folded for mark in "都道府県"):
        for match in _WITH_PREFECTURE.finditer(folded):
            if re.search("[市区町村郡]", match["place"]) and not _is_range(match, folded):
                yield Finding("address", *match.span())
    if "丁目" in folded:
        for match in _WITHOUT_PREFECTURE.finditer(folded):
            yield Finding("address", *match.span())


def _is_range(match: re.Match[str], folded: str) -> bool:
    bare = match["blocks"].replace("-", "").isdigit()
    return bare and (
        match["place"].rstrip()[-1] in _PARTICLES or _COUNTED.match(folded, match.end("blocks")) is not None
    )

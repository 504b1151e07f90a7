"""Recall and false alarms of names of people, with the models of the extra `names`, in an environment of its own.

    .venv/bin/python -m tests.data.clean.names_evaluation

The texts were written for this measurement, after the detector.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from random import Random

from tests.repository import ROOT

FAMILY = [
    "佐藤",
    "鈴木",
    "高橋",
    "田中",
    "伊藤",
    "渡辺",
    "山本",
    "中村",
    "小林",
    "加藤",
    "吉田",
    "山田",
    "佐々木",
    "松本",
    "井上",
    "木村",
    "清水",
    "林",
    "斎藤",
    "山口",
    "池田",
    "橋本",
    "阿部",
    "石川",
    "森",
    "長谷川",
    "岡田",
    "近藤",
    "藤田",
    "遠藤",
    "青木",
    "坂本",
    "福田",
    "太田",
    "西村",
    "岡本",
    "中島",
    "三浦",
    "藤原",
    "松田",
]
GIVEN = [
    "翔太",
    "大輔",
    "健太",
    "直樹",
    "拓也",
    "誠",
    "浩",
    "隆",
    "健一",
    "美咲",
    "陽子",
    "恵子",
    "由美",
    "真由美",
    "智子",
    "さくら",
    "結衣",
    "陽菜",
    "葵",
    "蓮",
    "湊",
    "悠真",
    "和子",
    "幸子",
    "明美",
    "直美",
    "裕子",
    "太郎",
    "花子",
    "一郎",
]
WITH_NAMES = (
    "{name}と申します。先週注文した商品がまだ届いていません。",
    "担当の{name}さんに折り返しお電話をお願いします。",
    "お世話になっております。株式会社山川商事の{name}です。",
    "予約は{name}様のお名前で承っております。",
    "昨日{name}先生に診ていただきましたが、薬が合わないようです。",
    "会議の参加者は{name}、ほか三名です。",
    "配送先の宛名を{name}に変更してください。",
    "面接は人事部の{name}が担当いたします。",
)
WITHOUT = (
    "先週注文した商品がまだ届いていません。注文番号は{number}です。",
    "東京駅から新宿までの行き方を教えてください。",
    "富士通のパソコンが起動しなくなりました。",
    "明日の天気は晴れのち曇り、最高気温は{number}度の見込みです。",
    "返品の送料は誰が負担しますか。",
    "松坂牛のすき焼きセットを三つお願いします。",
    "本田技研工業の株価が上がりました。",
    "在庫がある色は赤と青です。サイズは{number}センチです。",
    "有給休暇の申請方法を知りたいです。",
    "大阪支店の営業時間は九時から十八時までです。",
)
ROWS = 400


def measure() -> str:
    """The figures, with the installed models."""
    from ray_jobs.data.clean.finding import FoldedText
    from ray_jobs.data.clean.names import find_people, versions

    random, found, whole, alarmed = Random(7), 0, 0, 0
    for at in range(ROWS):
        name = random.choice(FAMILY) + random.choice(["", " ", ""]) + random.choice(GIVEN)
        text = WITH_NAMES[at % len(WITH_NAMES)].format(name=name)
        spans = [text[each.start : each.end] for each in find_people(FoldedText(text))]
        found += any(span in name or name in span for span in spans)
        whole += any(name in span for span in spans)
    for at in range(ROWS):
        text = WITHOUT[at % len(WITHOUT)].format(number=random.randrange(10, 99_999))
        alarmed += any(True for _ in find_people(FoldedText(text)))
    return (
        f"{versions()}: of {ROWS} Japanese rows with a name {found / ROWS:.1%} found, {whole / ROWS:.1%} as a whole; "
        f"{alarmed} of {ROWS} rows without one alarmed"
    )


def main() -> None:
    from tests.serving.clients import environment

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    python = environment("names", (*extras["names"], "pydantic", "PyYAML", "phonenumbers"))
    code = "from tests.data.clean.names_evaluation import measure; print(measure())"
    subprocess.run([str(python), "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


if __name__ == "__main__":
    main()

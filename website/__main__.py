"""Write every page that is made from the code: `python -m website`."""

from website.pages import ROOT, pages

for name, make in pages().items():
    place = ROOT / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(make(), encoding="utf-8")
    print(name)

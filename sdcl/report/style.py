"""The page's style sheet."""

CSS = """
:root { color-scheme: light; --ink: #26262c; --soft: #6a6a74; --line: #e4e4e8; --right: #2f8f6b; --wrong: #c2554d; --accent: #4b5fa8; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: #f6f6f4; color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 44px; }
h1 { font-size: 29px; font-weight: 650; letter-spacing: -.015em; margin: 0; }
header p { color: var(--soft); margin: 4px 0 22px; overflow-wrap: anywhere; }
.numbers { display: flex; flex-wrap: wrap; gap: 14px; margin-bottom: 26px; }
.number { flex: 1 1 160px; background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.number b { display: block; font-size: 30px; font-weight: 600; letter-spacing: -.02em; line-height: 1.15; font-variant-numeric: tabular-nums; }
.number span { color: var(--soft); font-size: 13px; }
nav { position: sticky; top: 0; z-index: 2; background: #f6f6f4ee; border-block: 1px solid var(--line); text-align: center; padding: 9px 16px; }
nav a { color: var(--soft); text-decoration: none; font-size: 13.5px; margin: 0 10px; white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--accent); text-decoration: underline; }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 22px 26px 26px; margin: 22px 0; scroll-margin-top: 52px; }
h2 { font-size: 20px; font-weight: 620; margin: 0 0 12px; }
h3 { font-size: 15.5px; font-weight: 620; margin: 24px 0 8px; }
h4 { font-size: 13.5px; font-weight: 600; color: var(--soft); margin: 16px 0 6px; }
small { color: var(--soft); font-weight: 400; font-size: .85em; }
p { margin: 0 0 12px; }
figure { margin: 0; }
.wide { margin-top: 18px; }
.wide img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
td, th { padding: 5px 12px; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; }
tbody th { font-weight: 400; }
.mode th { font-weight: 620; padding-top: 14px; border-bottom: 1px solid var(--line); }
.best td, .best th { font-weight: 650; }
.best small { font-weight: 400; }
.chance td, .chance th, .published td, .published th { color: var(--soft); }
.ranked { display: grid; gap: 10px; overflow-x: auto; }
.row { display: flex; gap: 7px; align-items: flex-start; }
.arrow { align-self: center; color: var(--soft); padding: 0 3px; }
.photo img { display: block; height: 138px; width: auto; border-radius: 4px; }
.photo figcaption { font-size: 10.5px; line-height: 1.25; margin-top: 3px; width: 0; min-width: 100%; }
.right img, .wrong img, .query img { border: 3px solid var(--ink); border-radius: 6px; }
.right img { border-color: var(--right); }
.wrong img { border-color: var(--wrong); }
.right figcaption, .key.right { color: var(--right); }
.wrong figcaption, .key.wrong { color: var(--wrong); }
.key { font-weight: 600; }
.triples { display: grid; grid-template-columns: repeat(auto-fill, minmax(228px, 1fr)); gap: 18px; }
.triple { display: flex; gap: 6px; }
.triple .photo img { height: 144px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 20px; margin: 0; font-size: 13.5px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.settings { grid-template-columns: repeat(2, max-content 1fr); }
@media (max-width: 700px) { header, main { padding-inline: 14px; } section { padding: 16px; } .settings { grid-template-columns: max-content 1fr; } }
@media print { nav { display: none; } section { break-inside: avoid; border: 0; } body { background: #fff; } }
"""

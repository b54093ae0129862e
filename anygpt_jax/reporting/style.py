"""The page's style sheet."""

CSS = """
:root { --ink: #1d2430; --soft: #667085; --line: #e4e7ec; --paper: #fff; --ground: #f6f7f9;
  --good: #17804d; --bad: #b42318; --accent: #3b6fd4; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
header h1 { font-size: 34px; line-height: 1.15; margin: 0 0 8px; letter-spacing: -.02em; }
header p { max-width: 660px; color: var(--soft); margin: 0 0 22px; font-size: 17px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; }
.cards div { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 18px; }
.cards b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; }
.cards span { color: var(--soft); font-size: 13px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 22px 26px;
  margin-top: 22px; }
h2 { font-size: 20px; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 15px; margin: 20px 0 10px; color: var(--soft); font-weight: 600; }
.note { color: var(--soft); margin: 0 0 14px; max-width: 820px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px 9px 0; text-align: left; vertical-align: middle; border-top: 1px solid var(--line);
  font-weight: normal; }
thead th { border-top: 0; color: var(--soft); font-size: 13px; padding-top: 2px; padding-bottom: 6px; }
tbody th { font-weight: 600; white-space: nowrap; }
.scores td.metric { color: var(--soft); }
td.score { position: relative; font-weight: 650; padding-bottom: 13px; min-width: 84px; }
td.target { color: var(--soft); white-space: nowrap; font-size: 13px; padding-right: 26px; }
td.good { color: var(--good); } td.bad { color: var(--bad); }
.bar { display: block; height: 4px; border-radius: 2px; background: currentColor; opacity: .55; }
td.score .bar { position: absolute; left: 0; bottom: 6px; max-width: calc(100% - 14px); }
td.wide { width: 45%; color: var(--accent); } td.wide .bar { height: 8px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 22px; }
figure { margin: 0; }
.charts figcaption { color: var(--soft); font-size: 13px; margin-bottom: 6px; }
svg { width: 100%; height: auto; font-size: 12px; }
svg .rule { stroke: var(--line); } svg .tick { fill: var(--soft); font-size: 11px; }
.tiles { display: grid; grid-template-columns: repeat(8, minmax(96px, 1fr)); gap: 14px 12px;
  overflow-x: auto; }
.tile img { width: 100%; border-radius: 8px; border: 1px solid var(--line); display: block; }
.tile figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 5px; color: var(--soft); }
.tile.good figcaption::before { content: "✓ "; color: var(--good); font-weight: 700; }
.tile.bad figcaption::before { content: "✗ "; color: var(--bad); font-weight: 700; }
.media th { white-space: normal; }
.media img { width: 72px; border-radius: 6px; border: 1px solid var(--line); display: block; }
audio { height: 34px; width: 210px; vertical-align: middle; }
em { font-style: normal; font-size: 13px; } em.good { color: var(--good); } em.bad { color: var(--bad); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 30px;
  align-items: start; }
.plain { margin-top: 10px; } .plain tr > th { font-weight: normal; }
"""

// What changed from one text to another, word by word.

// Words and marks, each with the space behind it; that space does not make two words different.
const words = (text) => text.match(/(?:[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_])\s*|\s+/gu) ?? [];

/** Pieces [kind, text] that make both texts: kind is "same", "gone" or "new". The longest common words stay. */
function wordDiff(before, after) {
  const a = words(before), b = words(after);
  const same = (i, j) => a[i].trimEnd() === b[j].trimEnd();
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i][j] = same(i, j) ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const pieces = [];
  const add = (kind, word) => {
    const last = lastOf(pieces);
    if (last && last[0] === kind) last[1] += word; else pieces.push([kind, word]);
  };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) { add("same", b[j]); i++; j++; }
    else if (j >= b.length || (i < a.length && lengths[i + 1][j] >= lengths[i][j + 1])) add("gone", a[i++]);
    else add("new", b[j++]);
  }
  return pieces;
}

function diffText(before, after) {
  const tags = { same: "span", gone: "del", new: "ins" };
  return make("p", { className: "text" }, wordDiff(before, after).map(([kind, text]) => make(tags[kind], {}, visible(text))));
}

// A flame graph as SVG, from folded stacks: the width of a box is the share of samples in which it was on the stack.

const WIDTH = 1600;
const HEIGHT = 17; // of a box
const SMALLEST = 0.5; // pixels

const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]);

export function flameGraph(stacks, title) {
  const root = { name: 'all', count: 0, children: new Map() };
  for (const [key, count] of stacks) {
    let node = root;
    node.count += count;
    for (const name of key.split(';')) {
      let child = node.children.get(name);
      if (child === undefined) node.children.set(name, child = { name, count: 0, children: new Map() });
      child.count += count;
      node = child;
    }
  }
  const boxes = [];
  let deepest = 0;
  const place = (node, x, level) => {
    const width = WIDTH * node.count / root.count;
    if (width < SMALLEST) return;
    deepest = Math.max(deepest, level);
    boxes.push({ node, x, width, level });
    let at = x;
    for (const child of [...node.children.values()].sort((a, b) => (a.name < b.name ? -1 : 1))) {
      place(child, at, level + 1);
      at += WIDTH * child.count / root.count;
    }
  };
  place(root, 0, 0);
  const height = (deepest + 1) * HEIGHT + 30;
  const drawn = boxes.map(({ node, x, width, level }) => {
    const y = height - (level + 1) * HEIGHT;
    const hue = [...node.name].reduce((sum, c) => (sum * 31 + c.charCodeAt(0)) % 50, 7);
    const letters = Math.floor((width - 4) / 6.5);
    const label = letters < 3 ? '' : `<text x="${(x + 2).toFixed(1)}" y="${y + 12}">${escape(node.name.length > letters ? `${node.name.slice(0, letters - 1)}…` : node.name)}</text>`;
    return `<g><title>${escape(node.name)}: ${node.count} samples, ${(100 * node.count / root.count).toFixed(2)} %</title><rect x="${x.toFixed(1)}" y="${y}" width="${Math.max(width - 0.5, 0.3).toFixed(1)}" height="${HEIGHT - 1}" fill="hsl(${hue},85%,62%)"/>${label}</g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" font-family="monospace" font-size="11">
<rect width="100%" height="100%" fill="#fff"/><text x="4" y="16" font-size="13">${escape(title)}</text>
${drawn.join('\n')}
</svg>
`;
}

// Figures from samples: nearest-rank quantiles, medians, spread over repeats.

export const quantile = (values, q) => {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
};

export const median = (values) => {
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

export const spread = (values) => ({
  median: median(values), min: Math.min(...values), max: Math.max(...values),
});

// How many times b's figure is a's: of the medians, and the least and the most within one repeat, in
// which the two were measured one right after the other.
export const ratio = (a, b) => {
  const pairs = a.map((value, i) => value / b[i]);
  return { of_medians: median(a) / median(b), min: Math.min(...pairs), max: Math.max(...pairs) };
};

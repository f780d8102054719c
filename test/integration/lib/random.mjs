/** Numbers below n, and choices, that are the same for the same seed. */
export function randomOf(seed) {
  let state = seed >>> 0;
  const random = (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  return { random, pick: (...list) => list[random(list.length)] };
}

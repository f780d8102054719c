// Web Locks, as far as /tabs asks for them: exclusive, in order, taken away, given up.

const held = new Map();
const queues = new Map();

const pump = (name) => {
  if (held.has(name)) return;
  const next = queues.get(name)?.shift();
  if (next) grant(name, next);
};
const grant = (name, entry) => {
  held.set(name, entry);
  Promise.resolve().then(() => entry.work({ name })).then(entry.resolve, entry.reject).finally(() => {
    if (held.get(name) !== entry) return;
    held.delete(name);
    pump(name);
  });
};

export const locks = {
  request: (name, options, work = options) => new Promise((resolve, reject) => {
    const { signal, steal } = work === options ? {} : options;
    const entry = { work, resolve, reject };
    const aborted = () => new DOMException('given up', 'AbortError');
    if (signal?.aborted) return reject(aborted());
    if (steal) {
      held.get(name)?.reject(new DOMException('taken away', 'AbortError'));
      return grant(name, entry);
    }
    if (!queues.has(name)) queues.set(name, []);
    queues.get(name).push(entry);
    signal?.addEventListener('abort', () => {
      const at = queues.get(name).indexOf(entry);
      if (at < 0) return;
      queues.get(name).splice(at, 1);
      reject(aborted());
    });
    pump(name);
  }),
};

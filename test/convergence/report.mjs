// What a run went through, in numbers.

export class Report {
  frames = 0;
  frameChannels = 0;
  catchUpFrames = 0;
  rowsChecked = 0;
  positions = 0;
  readies = 0;
  caches = 0;
  refusals = 0;
  extensions = 0;
  snapshotPages = 0;
  snapshotRows = 0;
  connections = 0;
  quietPoints = 0;
  selects = 0;
  kinds = {};

  count(group, name) {
    this.kinds[group] ??= {};
    this.kinds[group][name] = (this.kinds[group][name] ?? 0) + 1;
  }

  of(group) {
    return Object.values(this.kinds[group] ?? {}).reduce((a, b) => a + b, 0);
  }

  print({ model, writers, seconds }) {
    const list = (group) => Object.entries(this.kinds[group] ?? {}).sort().map(([name, n]) => `${name} ${n}`).join(', ') || 'none';
    const sum = (what) => writers.reduce((n, writer) => n + writer[what], 0);
    console.log(`${seconds.toFixed(0)} s: ${model.transactions} transactions with ${model.changes} changed rows and ${model.events} DDL events
  writers: ${sum('committed')} scripts done, ${sum('failed')} failed, ${sum('lost')} cut off; ddl: ${list('ddl')}
  frames checked: ${this.frames} (${this.frameChannels} with channel, ${this.catchUpFrames} while catching up), changes ${this.rowsChecked}, positions ${this.positions}
  caches compared in full: ${this.caches}; ready: ${this.readies}; snapshot pages ${this.snapshotPages}
  values leak-checked: ${this.rowsChecked + this.snapshotRows} rows, ${this.snapshotRows} of them in snapshots; refusals checked: ${this.refusals}
  connections: ${this.connections}; actions: ${list('actions')}
  resumes: ${list('resumes')}
  resyncs: ${list('resyncs')}
  refused: ${list('subscriptions refused')}; revoked: ${list('revoked')}
  kills: ${list('kills')}
  columns added without resync: ${this.extensions}
  quiet points: ${this.quietPoints}, with ${this.selects} views compared with SELECT`);
  }
}

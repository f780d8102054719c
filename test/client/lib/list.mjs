// What react.test.mjs draws on the server and in the page.

export const pageOf = ({ createElement: h, Suspense }, { RealtimeProvider, useConnection, useMetrics, usePresence, useRows }) => {
  const List = ({ initial }) => {
    const { rows, state } = useRows('orders:42', { initial });
    const sorted = [...rows].sort((a, b) => a.id - b.id);
    return h('ul', { className: state }, sorted.map((row) => h('li', { key: row.id, id: `o${row.id}` }, row.note)));
  };
  const Status = () => h('p', null, useConnection().status, useMetrics(20).connects, usePresence('room:42').count);
  return ({ client, initial }) => h(RealtimeProvider, { client }, h(Status), h(Suspense, { fallback: 'wait' }, h(List, { initial })));
};

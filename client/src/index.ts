/**
 * pg-changefeed: rows of PostgreSQL that keep themselves right.
 */
export { createClient } from './client.js';
export { ChangefeedError, type ErrorType } from './error.js';
export { webSocket } from './socket.js';
export type * from './types.js';

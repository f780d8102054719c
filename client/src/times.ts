/**
 * How long the connection takes its time, in milliseconds. They stand in a file of their own because the build puts in their values
 * only where they are imported.
 */

/** A connection that has held for so long was not a failure. */
export const STABLE_MS = 5000;
/** What the server grants beyond its heartbeat, we do; and the time for a token and a connection. */
export const GRACE_MS = 10_000;
export const CONNECT_MS = 20_000;
/** A server that is asked whether it is there has so long. */
export const ASK_MS = 5000;
/** How often is looked whether the server was heard of, and whether the machine has slept. */
export const TICK_MS = 2000;

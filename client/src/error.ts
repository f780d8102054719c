/**
 * Errors: what the server says, and what goes wrong on the way to it.
 */
import type { AnyRow } from './types.js';

/**
 * - `network`: the connection is lost, or there was no answer
 * - `auth`: the token or the rights
 * - `limit`: too much of something, or the server is short of it
 * - `conflict`: somebody else was first
 * - `request`: what was asked for is wrong, or is not there
 * - `server`: everything else
 */
export type ErrorType = 'network' | 'auth' | 'limit' | 'conflict' | 'request' | 'server';

/** By SQLSTATE and by the words of the protocol; the first one that fits. */
const TYPES: Partial<Record<ErrorType, RegExp>> = {
  network: /^(no_[ac]|timeout|shutting)/,
  auth: /^(28|42501|forbid|addr)/,
  limit: /^(5[34]|too_)/,
  conflict: /^(40|23|55P03)/,
  request: /^(08|0A|22|42|55|[bclmnu])/,
};

/** What may be gone by itself. */
const RETRYABLE = /^(40(?!003)|53|55P03|57|XX|no_[ac]|too_many|timeout|shutting|incons)/;

export class ChangefeedError extends Error {
  /** An SQLSTATE, one of the protocol's words, or `no_connection`, `no_answer`, `no_exact_number`, `inconsistent`, `closed`. */
  declare readonly code: string;
  declare readonly type: ErrorType;
  /** `warning`: nothing was lost; `error`: what it answers has failed; `fatal`: it will again. */
  declare readonly severity: 'warning' | 'error' | 'fatal';
  /** The same request may succeed later. */
  declare readonly retryable: boolean;
  declare readonly hint?: string;
  declare readonly detail?: string;
  declare readonly channel?: string;
  /** Of a call that expected another row: the row of now. */
  declare readonly conflict?: AnyRow;
  declare readonly retryAfterMs?: number;
  /** Everything that the server said. */
  declare readonly info: AnyRow;

  constructor(code: string, message = code, info: AnyRow = {}) {
    super(message);
    const retryable = !info.conflict && RETRYABLE.test(code);
    // What the server has said beside it, such as a hint, is told by the same names.
    Object.assign(this, info, {
      name: 'ChangefeedError', code, info, retryable, retryAfterMs: info.retry_after_ms,
      type: (Object.keys(TYPES) as ErrorType[]).find((type) => TYPES[type]!.test(code)) ?? 'server',
      // The warning that the token expires soon, and what heals by loading again.
      severity: info.expires_at || code === 'inconsistent' ? 'warning' : retryable ? 'error' : 'fatal',
    });
  }
}

/** From a message of the server. */
export const errorOf = (message: AnyRow): ChangefeedError =>
  new ChangefeedError(message.code ?? 'XX000', message.message ?? message.reason, message);

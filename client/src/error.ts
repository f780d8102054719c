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

const TYPES: Record<string, ErrorType> = {
  '28': 'auth', '42501': 'auth', '53': 'limit', '54': 'limit', '40': 'conflict', '55P03': 'conflict', '23': 'conflict',
  '08': 'request', '0A': 'request', '22': 'request', '42': 'request', '55': 'request', no: 'network',
};

/** Classes and codes that may be gone by themselves. */
const RETRYABLE = /^(40(?!003)|53|55P03|57|no_|XX)/;

export class ChangefeedError extends Error {
  override name = 'ChangefeedError';
  /** An SQLSTATE, one of the protocol's words, or `no_connection`, `no_answer`, `no_exact_number`. */
  readonly code: string;
  readonly type: ErrorType;
  /** `warning`: nothing was lost; `error`: what it answers has failed; `fatal`: it will again. */
  readonly severity: 'warning' | 'error' | 'fatal';
  /** The same request may succeed later. */
  readonly retryable: boolean;
  readonly hint?: string;
  readonly detail?: string;
  readonly channel?: string;
  /** Of a call that expected another row: the row of now. */
  readonly conflict?: AnyRow;
  readonly retryAfterMs?: number;
  /** Everything that the server said. */
  readonly info: AnyRow;

  constructor(code: string, message: string, more: AnyRow = {}) {
    super(message);
    this.code = code;
    this.type = TYPES[code] ?? TYPES[code.slice(0, 2)] ?? 'server';
    this.retryable = !more.conflict && RETRYABLE.test(code);
    this.severity = more.severity ?? (this.retryable ? 'error' : 'fatal');
    this.hint = more.hint;
    this.detail = more.detail;
    this.channel = more.channel;
    this.conflict = more.conflict;
    this.retryAfterMs = more.retry_after_ms;
    this.info = more;
  }
}

/** From a message of the server. */
export const errorOf = (message: AnyRow): ChangefeedError =>
  new ChangefeedError(String(message.code ?? 'XX000'), String(message.message ?? message.reason ?? 'unknown error'), message);

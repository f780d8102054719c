/**
 * What a page can read in its own token. It proves nothing: only the server checks signatures.
 */
import type { AnyRow } from './types.js';

/** The claims of a JWT; null for anything else. */
export const claimsOf = (token: string | null | undefined): AnyRow | null => {
  try {
    return JSON.parse(atob(token!.split('.')[1]!.replace(/-/g, '+').replace(/_/g, '/'))) as AnyRow;
  } catch {
    return null;
  }
};

/** Does this clock say that the token has expired? */
export const hasExpired = (token: string | null | undefined): boolean => claimsOf(token)?.exp * 1000 <= Date.now();

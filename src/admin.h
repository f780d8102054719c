/*-------------------------------------------------------------------------
 *
 * admin.h
 *		What operators ask over HTTP: /metrics and /healthz.
 *
 * Process: feed worker; AdminAddressIsValid: any.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_ADMIN_H
#define CHANGEFEED_ADMIN_H

#include "http.h"

/* Handlers, for http.c; they answer in a later turn. */
extern void AdminMetrics(Connection *connection, const HttpRequest *request);
extern void AdminHealth(Connection *connection, const HttpRequest *request);

/* Once a turn; ms until it has something to do by time, or -1. */
extern long AdminAdvance(void);

/* For the setting: an address, or a network as address/bits. */
extern bool AdminAddressIsValid(const char *text);

#endif /* CHANGEFEED_ADMIN_H */

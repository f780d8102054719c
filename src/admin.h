/*-------------------------------------------------------------------------
 *
 * admin.h
 *		What operators ask over HTTP: /metrics and /healthz, and who may.
 *
 * Process: feed worker; AdminAddressIsValid: any.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_ADMIN_H
#define CHANGEFEED_ADMIN_H

#include "http.h"

/*
 * May the request see what concerns everybody?  False: it was answered.  `what`
 * is for the message.
 */
extern bool AdminAllows(Connection *connection, const HttpRequest *request, const char *what);

/* Handlers, for http.c; they answer in a later turn. */
extern void AdminMetrics(Connection *connection, const HttpRequest *request);
extern void AdminHealth(Connection *connection, const HttpRequest *request);

/* Once a turn; ms until it has something to do by time, or -1. */
extern long AdminAdvance(void);

/* For the setting: an address, or a network as address/bits. */
extern bool AdminAddressIsValid(const char *text);

#endif /* CHANGEFEED_ADMIN_H */

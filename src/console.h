/*-------------------------------------------------------------------------
 *
 * console.h
 *		The console: the page, and what it asks for.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_CONSOLE_H
#define CHANGEFEED_CONSOLE_H

#include "http.h"

/* Handlers, for http.c; the last two answer in a later turn. */
extern void ConsolePage(Connection *connection, const HttpRequest *request);
extern void ConsoleData(Connection *connection, const HttpRequest *request);
extern void ConsoleExplain(Connection *connection, const HttpRequest *request);

/* Once a turn; 0: call again at once, -1, or ms until it has something to do. */
extern long ConsoleAdvance(void);

/* One of the console's files; false, which is logged: it cannot be read. */
extern bool ConsoleRead(const char *file, StringInfo bytes);

#endif /* CHANGEFEED_CONSOLE_H */

/*-------------------------------------------------------------------------
 *
 * tls_files.h
 *		Certificate and key of TLS, from the files that the settings name.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_TLS_FILES_H
#define CHANGEFEED_TLS_FILES_H

#include "linkframe.h"

/*
 * Reads the files before the port is bound; false if TLS is wanted and cannot
 * be had.  `quiet`: the log has the reason, unless it is another one now.
 */
extern bool TlsPrepare(bool quiet);

/* Settings were reloaded; true: gateways have to be told. */
extern bool TlsReload(void);

/* LINK_TLS with what is in use. */
extern void TlsSend(LinkFrame *link);

#endif /* CHANGEFEED_TLS_FILES_H */

/*-------------------------------------------------------------------------
 *
 * ddl.h
 *		How the SQL functions get at the extension's tables.
 *
 * The functions run as whoever calls them and check the caller's rights in C.
 * Only between DdlBegin and DdlEnd do they run as the owner of the tables, and
 * then nothing but statements of our own on our own tables.
 *
 * Process: any backend.  Memory: DdlBegin connects to SPI, so that what is
 * allocated until DdlEnd goes with it.  Locks: DdlLock takes what makes the
 * writers of channels and sources wait for each other, until the end of the
 * transaction; readers (views, workers) go on.  Whoever needs locks on user
 * tables, too, takes them first.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_DDL_H
#define CHANGEFEED_DDL_H

#include "pg_changefeed.h"

#include "executor/spi.h"

typedef struct DdlAccess
{
	Oid user; /* to go back to */
	int security_context;
} DdlAccess;

extern void DdlBegin(DdlAccess *access);
extern void DdlEnd(DdlAccess *access);
extern void DdlLock(void);

/*
 * Run one statement; results are in SPI_tuptable, and the return value is the
 * number of rows.  Reading sees what is committed now even in a transaction
 * with an old snapshot: rules about several rows would be broken otherwise.
 */
extern uint64 DdlRead(const char *sql, int nargs, Oid *types, Datum *values);
extern uint64 DdlWrite(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls);

/* An argument that must not be null. */
extern void DdlRequireArgument(FunctionCallInfo fcinfo, int argno, const char *name);

/* Whether the current user has the rights of the database's owner. */
extern bool DdlOwnsDatabase(void);

#endif /* CHANGEFEED_DDL_H */

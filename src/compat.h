/*-------------------------------------------------------------------------
 *
 * compat.h
 *		Every difference between the server versions that we support (15-18).
 *
 * No other file compares PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_COMPAT_H
#define CHANGEFEED_COMPAT_H

#include "postgres.h"

#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h" /* was in postgres.h */
#endif

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "pg_changefeed supports PostgreSQL 15 to 18"
#endif

/* Name and version of a library became part of its magic block in 18. */
#if PG_VERSION_NUM >= 180000
#define COMPAT_MODULE_MAGIC(module_name, module_version) \
	PG_MODULE_MAGIC_EXT(.name = module_name, .version = module_version)
#else
#define COMPAT_MODULE_MAGIC(module_name, module_version) PG_MODULE_MAGIC
#endif

/*
 * Wait events of extensions got names in 17; before, all are "Extension".  A
 * name is looked up once for each place that waits.
 */
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#define compat_wait_event(name)                   \
	({                                            \
		static uint32 event_ = 0;                 \
		if (event_ == 0)                          \
			event_ = WaitEventExtensionNew(name); \
		event_;                                   \
	})
#else
#include "utils/wait_event.h"
#define compat_wait_event(name) PG_WAIT_EXTENSION
#endif

/* Our own number in ProcGlobal->allProcs. */
#if PG_VERSION_NUM >= 170000
#define compat_my_procno() MyProcNumber
#else
#define compat_my_procno() (MyProc->pgprocno)
#endif

/* The tuple of a decoded change became a plain HeapTuple in 17. */
#if PG_VERSION_NUM >= 170000
#define compat_change_tuple(x) (x)
#else
#define compat_change_tuple(x) ((x) != NULL ? &(x)->tuple : NULL)
#endif

/* Privilege checks by catalog became one family in 16. */
#if PG_VERSION_NUM >= 160000
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#define compat_namespace_aclcheck(oid, role, mode) \
	object_aclcheck(NamespaceRelationId, oid, role, mode)
#define compat_database_ownercheck(oid, role) object_ownercheck(DatabaseRelationId, oid, role)
#define compat_relation_ownercheck(oid, role) object_ownercheck(RelationRelationId, oid, role)
#define compat_proc_aclcheck(oid, role, mode) object_aclcheck(ProcedureRelationId, oid, role, mode)
#define compat_proc_ownercheck(oid, role)	  object_ownercheck(ProcedureRelationId, oid, role)
#else
#define compat_namespace_aclcheck(oid, role, mode) pg_namespace_aclcheck(oid, role, mode)
#define compat_database_ownercheck(oid, role)	   pg_database_ownercheck(oid, role)
#define compat_relation_ownercheck(oid, role)	   pg_class_ownercheck(oid, role)
#define compat_proc_aclcheck(oid, role, mode)	   pg_proc_aclcheck(oid, role, mode)
#define compat_proc_ownercheck(oid, role)		   pg_proc_ownercheck(oid, role)
#endif

/*
 * Descriptors of tuples: the offset cache moved into a compact copy of the
 * attribute in 18, which has to be filled for attributes made by hand.
 */
#if PG_VERSION_NUM >= 180000
#define compat_attribute_made(tupdesc, attno) populate_compact_attribute(tupdesc, (attno) -1)
#else
#define compat_attribute_made(tupdesc, attno) (TupleDescAttr(tupdesc, (attno) -1)->attcacheoff = -1)
#endif

/*
 * Replication slots.  `invalid`: the slot can no longer be decoded from.
 * `foreign`: it belongs to a primary from which this server synchronises it.
 */
#if PG_VERSION_NUM >= 170000
#define COMPAT_FAILOVER_SLOTS true
#define compat_slot_create(name, failover) \
	ReplicationSlotCreate(name, true, RS_EPHEMERAL, false, failover, false)
#define compat_slot_is_foreign(slot)		  ((slot)->data.synced && RecoveryInProgress())
#define compat_slot_is_failover(slot)		  ((slot)->data.failover)
#define compat_slot_set_failover(slot, value) ((slot)->data.failover = (value))
#else
#define COMPAT_FAILOVER_SLOTS				  false
#define compat_slot_create(name, failover)	  ReplicationSlotCreate(name, true, RS_EPHEMERAL, false)
#define compat_slot_is_foreign(slot)		  false
#define compat_slot_is_failover(slot)		  false
#define compat_slot_set_failover(slot, value) ((void) 0)
#endif

#if PG_VERSION_NUM >= 180000
#define compat_slot_acquire(name) ReplicationSlotAcquire(name, false, false)
#else
#define compat_slot_acquire(name) ReplicationSlotAcquire(name, false)
#endif

#if PG_VERSION_NUM >= 160000
#define compat_slot_is_invalid(slot) \
	((slot)->data.invalidated != RS_INVAL_NONE || (slot)->data.restart_lsn == InvalidXLogRecPtr)
#else
#define compat_slot_is_invalid(slot) ((slot)->data.restart_lsn == InvalidXLogRecPtr)
#endif

/*
 * Being woken when WAL is flushed (on a standby: replayed): from 16 on the
 * walsenders' condition variable does it.  It is only a list of whom to wake:
 * a broadcast takes us off, so join again before each look at the position.
 */
#if PG_VERSION_NUM >= 160000
#include "replication/walsender_private.h"
#define compat_wal_wait_join()	ConditionVariablePrepareToSleep(&WalSndCtl->wal_replay_cv)
#define compat_wal_wait_leave() ((void) ConditionVariableCancelSleep())
#else
#define compat_wal_wait_join()	((void) 0)
#define compat_wal_wait_leave() ((void) 0)
#endif

/* Is the lock that a transaction holds on its own xid until its end gone? */
#if PG_VERSION_NUM >= 180000
#define compat_xact_lock_is_free(xid) ConditionalXactLockTableWait(xid, false)
#else
#define compat_xact_lock_is_free(xid) ConditionalXactLockTableWait(xid)
#endif

/* Stands before the declaration from 18 on. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* A wait set that lives as long as the process. */
#if PG_VERSION_NUM >= 170000
#define compat_create_wait_set(n) CreateWaitEventSet(NULL, n)
#else
#define compat_create_wait_set(n) CreateWaitEventSet(TopMemoryContext, n)
#endif

/* The JSON parser's callbacks return a result from 16 on. */
#if PG_VERSION_NUM >= 160000
#define compat_json_result	JsonParseErrorType
#define compat_json_success JSON_SUCCESS
#else
#define compat_json_result void
#define compat_json_success
#endif
#if PG_VERSION_NUM >= 170000
#define compat_json_lexer_encoded(text, length, encoding) \
	makeJsonLexContextCstringLen(NULL, text, length, encoding, true)
#else
#define compat_json_lexer_encoded(text, length, encoding) \
	makeJsonLexContextCstringLen(text, length, encoding, true)
#endif
#define compat_json_lexer(text, length) compat_json_lexer_encoded(text, length, PG_UTF8)
#define compat_json_error(result, lex)	json_errdetail(result, lex)

/* A set-returning function that gives all rows at once; renamed after 15.0. */
#if PG_VERSION_NUM >= 160000
#define compat_materialize(fcinfo) InitMaterializedSRF(fcinfo, 0)
#else
#define compat_materialize(fcinfo) SetSingleFuncCall(fcinfo, 0)
#endif

/* The right to SET ROLE was separated from membership in 16. */
#if PG_VERSION_NUM >= 160000
#define compat_can_set_role(user, role) member_can_set_role(user, role)
#else
#define compat_can_set_role(user, role) is_member_of_role(user, role)
#endif

/* Requested privileges moved from the range table entry into a list in 16. */
#if PG_VERSION_NUM >= 160000
#define compat_require_select(query, rte) \
	(addRTEPermissionInfo(&(query)->rteperminfos, rte)->requiredPerms = ACL_SELECT)
#else
#define compat_require_select(query, rte) ((void) (query), (rte)->requiredPerms = ACL_SELECT)
#endif

/* Columns that the query wants to read of a table. */
#if PG_VERSION_NUM >= 160000
#define compat_selected_columns(query, rte) \
	(getRTEPermissionInfo((query)->rteperminfos, rte)->selectedCols)
#else
#define compat_selected_columns(query, rte) ((rte)->selectedCols)
#endif

/* An entry of a plan that reads none of its tables. */
#if PG_VERSION_NUM >= 160000
#define compat_require_nothing(rte) ((rte)->perminfoindex = 0)
#else
#define compat_require_nothing(rte) ((rte)->requiredPerms = 0)
#endif

/* One that does not wait for the commit has to be on disk to be decoded (17). */
#if PG_VERSION_NUM >= 170000
#define compat_log_message(prefix, data, size, transactional) \
	((void) LogLogicalMessage(prefix, data, size, transactional, !(transactional)))
#else
#define compat_log_message(prefix, data, size, transactional)                          \
	do                                                                                 \
	{                                                                                  \
		XLogRecPtr message_lsn = LogLogicalMessage(prefix, data, size, transactional); \
		if (!(transactional))                                                          \
			XLogFlush(message_lsn);                                                    \
	} while (0)
#endif

#if PG_VERSION_NUM >= 160000
#define compat_toplevel_txn(txn) rbtxn_get_toptxn(txn)
#else
#define compat_toplevel_txn(txn) ((txn)->toptxn != NULL ? (txn)->toptxn : (txn))
#endif

/* Virtual generated columns came with 18; before, attgenerated is never 'v'. */
#define COMPAT_GENERATED_VIRTUAL 'v'
#if PG_VERSION_NUM >= 180000
#define compat_generation_expression(rel, attno) build_generation_expression(rel, attno)
#else
#define compat_generation_expression(rel, attno) ((void) (rel), (void) (attno), (Node *) NULL)
#endif

/* Are partitions left out when the plan is begun?  Where that is kept changed in 18. */
#if PG_VERSION_NUM >= 180000
#define compat_plan_prunes(plan)                                          \
	((IsA(plan, Append) && ((Append *) (plan))->part_prune_index >= 0) || \
	 (IsA(plan, MergeAppend) && ((MergeAppend *) (plan))->part_prune_index >= 0))
#else
#define compat_plan_prunes(plan)                                            \
	((IsA(plan, Append) && ((Append *) (plan))->part_prune_info != NULL) || \
	 (IsA(plan, MergeAppend) && ((MergeAppend *) (plan))->part_prune_info != NULL))
#endif

#endif /* CHANGEFEED_COMPAT_H */

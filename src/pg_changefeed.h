/*-------------------------------------------------------------------------
 *
 * pg_changefeed.h
 *		Names and settings that all server-side modules share.
 *
 * Process: any server process.  Settings are process-local copies that the
 * GUC machinery keeps; workers re-read the configuration file on SIGHUP.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PG_CHANGEFEED_H
#define PG_CHANGEFEED_H

#include "postgres.h"

#include "compat.h"

#include "datatype/timestamp.h"
#include "portability/instr_time.h"

#define CHANGEFEED_VERSION	 "0.1.0"
#define CHANGEFEED_EXTENSION "pg_changefeed"

/* The oldest extension whose tables and functions this library serves. */
#define CHANGEFEED_OLDEST_VERSION "0.1"
#define CHANGEFEED_LIBRARY		  "pg_changefeed"
#define CHANGEFEED_SCHEMA		  "changefeed"

#define DECODER_NATIVE	 0
#define DECODER_WAL2JSON 1

#define FORWARDED_HEADER_X		  0 /* X-Forwarded-For */
#define FORWARDED_HEADER_STANDARD 1 /* Forwarded */

/* settings.c: one variable a setting, see SettingsDefine for the texts. */
extern int setting_port;
extern char *setting_listen_addresses;
extern char *setting_allowed_origins;
extern char *setting_allowed_hosts;
extern char *setting_unix_socket;
extern int setting_unix_socket_mode;
extern char *setting_tls_cert_file;
extern char *setting_tls_key_file;
extern char *setting_jwt_secret_file;
extern char *setting_jwt_public_key_file;
extern char *setting_jwks_file;
extern char *setting_jwt_audience;
extern char *setting_jwt_role_claim;
extern char *setting_identity_claims; /* claims left out of the identity */
extern char *setting_anon_role;
extern char *setting_token_cookie;
extern int setting_max_response;
extern int setting_gateways;
extern int setting_decoder; /* DECODER_* */
extern int setting_query_workers;
extern int setting_worker_memory;	 /* kB */
extern int setting_snapshot_space;	 /* MB */
extern int setting_history_size;	 /* kB */
extern int setting_history_age;		 /* seconds */
extern int setting_history_wal_size; /* MB */
extern bool setting_failover_slot;
extern int setting_max_transaction; /* kB */
extern int setting_send_buffer;		/* kB */
extern int setting_max_frame;		/* kB */
extern int setting_max_message;		/* kB */
/* Upper bound of changefeed.max_payload. */
#define MAX_PAYLOAD_KB (16 * 1024)
extern int setting_max_payload; /* kB */
extern int setting_max_connections;
extern int setting_max_subscriptions; /* per connection */
extern int setting_policy_timeout;	  /* ms */
extern bool setting_audience_index;
extern bool setting_inline_policies;
extern int setting_recheck_interval; /* seconds, 0: off */
extern bool setting_compression;
extern int setting_call_workers;	/* 0: no calls */
extern int setting_call_timeout;	/* ms */
extern int setting_idempotency_age; /* seconds */
extern int setting_heartbeat;		/* ms */
extern int setting_connect_timeout; /* ms */
extern char *setting_admin_addresses;
extern int setting_health_max_lag; /* ms */

/* settings_limits.c */
extern int setting_max_connections_per_address; /* 0: no limit, as of all but the time-out */
extern int setting_max_connections_per_user;
extern int setting_max_handshake_rate; /* per second */
extern int setting_max_handshake_rate_per_address;
extern int setting_handshake_timeout; /* ms */
extern int setting_max_message_rate;  /* per second */
extern int setting_max_receive_rate;  /* kB per second */
extern char *setting_trusted_proxies;
extern int setting_forwarded_header; /* FORWARDED_HEADER_* */
extern char *setting_allowed_addresses;
extern char *setting_denied_addresses;
extern void SettingsDefineLimits(void);

/* Defines every setting; only from _PG_init. */
extern void SettingsDefine(void);

/* "changefeed.x" is set in postgresql.conf or with ALTER DATABASE/ROLE. */

/* hooks.c: installs the callbacks of every backend; only from _PG_init. */
extern void HooksInstall(void);

/* For SQL functions that need shared memory: an error if not preloaded. */
extern void RequirePreload(void);

/*
 * Entry points of the background workers (bgw_function_name).  `main_arg` of
 * the per-database ones is the index of the database's slot in shared memory.
 */
extern PGDLLEXPORT void ChangefeedLauncherMain(Datum main_arg);
extern PGDLLEXPORT void ChangefeedScanMain(Datum main_arg);
extern PGDLLEXPORT void ChangefeedDecoderMain(Datum main_arg);
extern PGDLLEXPORT void ChangefeedFeedMain(Datum main_arg);
extern PGDLLEXPORT void ChangefeedQueryMain(Datum main_arg);

/*
 * Microseconds of a clock that nobody sets, for differences, with the type that
 * the functions for those have.  It says nothing of the time of day.
 */
static inline TimestampTz
MonotonicTime(void)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	return (TimestampTz) INSTR_TIME_GET_MICROSEC(now);
}

#endif /* PG_CHANGEFEED_H */

/*-------------------------------------------------------------------------
 *
 * settings.c
 *		Every setting of the extension: its bounds and its documentation.
 *
 * The two texts of a setting are what pg_settings shows and what the reference
 * page is made from, so they are written for the administrator, once.
 *
 * Settings of a database are SUSET: a superuser may give each database its own
 * with ALTER DATABASE ... SET, and that database's workers read it when they
 * start.  Those that name or describe secrets can only stand in the
 * configuration file and are shown to superusers only.
 *
 * Process: any that loads the library.  Locks: none.  Memory: check hooks
 * allocate nothing that outlives them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pg_changefeed.h"
#include "admin.h"
#include "gateways.h"

#include <ctype.h>
#include <limits.h>
#include <sys/un.h>

#include "utils/guc.h"

int setting_port;
char *setting_listen_addresses;
char *setting_allowed_origins;
char *setting_allowed_hosts;
char *setting_unix_socket;
int setting_unix_socket_mode;
char *setting_tls_cert_file;
char *setting_tls_key_file;
char *setting_jwt_secret_file;
char *setting_jwt_public_key_file;
char *setting_jwks_file;
char *setting_jwt_audience;
char *setting_jwt_role_claim;
char *setting_identity_claims;
char *setting_anon_role;
char *setting_token_cookie;
int setting_max_response;
int setting_gateways;
int setting_decoder;
int setting_query_workers;
int setting_worker_memory;
int setting_snapshot_space;
int setting_history_size;
int setting_history_age;
int setting_history_wal_size;
bool setting_failover_slot;
int setting_max_transaction;
int setting_send_buffer;
int setting_max_frame;
int setting_max_message;
int setting_max_payload;
int setting_max_connections;
int setting_max_subscriptions;
int setting_policy_timeout;
bool setting_inline_policies;
int setting_recheck_interval;
bool setting_audience_index;
bool setting_compression;
int setting_call_workers;
int setting_call_timeout;
int setting_idempotency_age;
int setting_heartbeat;
int setting_connect_timeout;
char *setting_admin_addresses;
int setting_health_max_lag;

#define MAX_KB (1024 * 1024 * 1024) /* 1 TB: no overflow when made bytes */

/* ---- Lists: elements between commas, with blanks around them ---- */

/*
 * Finds the next element; false at the end.  An empty element (",,") is given
 * as one of length 0.  A list that is empty as a whole has no elements.
 */
static bool
NextElement(const char **at, const char **element, int *length)
{
	const char *p = *at;
	const char *end;

	if (p == NULL)
		return false;
	end = strchr(p, ',');
	*at = end != NULL ? end + 1 : NULL;
	if (end == NULL)
		end = p + strlen(p);
	while (p < end && isspace((unsigned char) *p))
		p++;
	while (end > p && isspace((unsigned char) end[-1]))
		end--;
	*element = p;
	*length = end - p;
	return true;
}

static bool
IsBlank(const char *value)
{
	return value == NULL || value[strspn(value, " \t\r\n")] == '\0';
}

/*
 * Checks "host", "host:port" or "[IPv6 address]:port" in the given characters.
 * Whether such a host exists is not ours to find out.
 */
static bool
HostIsValid(const char *host, int length, bool port_allowed)
{
	int i = 0;

	if (length > 0 && host[0] == '[')
	{
		for (i = 1; i < length && host[i] != ']'; i++)
		{
			if (!isxdigit((unsigned char) host[i]) && strchr(":.%", host[i]) == NULL)
				return false;
		}
		if (i < 2 || i == length)
			return false;
		i++;
	}
	else
	{
		for (; i < length && host[i] != ':'; i++)
		{
			if (!isalnum((unsigned char) host[i]) && strchr("-._", host[i]) == NULL)
				return false;
		}
		if (i == 0)
			return false;
	}

	if (i < length)
	{
		int port = 0;
		int digits = 0;

		if (!port_allowed || host[i] != ':')
			return false;
		for (i++; i < length; i++)
		{
			if (!isdigit((unsigned char) host[i]) || ++digits > 5)
				return false;
			port = port * 10 + (host[i] - '0');
		}
		if (port < 1 || port > 65535)
			return false;
	}
	return true;
}

static bool
CheckFailoverSlot(bool *value, void **extra, GucSource source)
{
	if (!*value || COMPAT_FAILOVER_SLOTS)
		return true;
	GUC_check_errcode(ERRCODE_FEATURE_NOT_SUPPORTED);
	GUC_check_errdetail(
		"Standbys can keep copies of logical replication slots from PostgreSQL 17 on.");
	return false;
}

static bool
CheckListenAddresses(char **newval, void **extra, GucSource source)
{
	const char *at = IsBlank(*newval) ? NULL : *newval;
	const char *element;
	int length;

	while (NextElement(&at, &element, &length))
	{
		bool valid = length > 0;

		/* A bare IPv6 address has colons, a port has no place here. */
		for (int i = 0; i < length; i++)
		{
			if (!isalnum((unsigned char) element[i]) && strchr("-._:%", element[i]) == NULL)
				valid = false;
		}
		if (length == 1 && element[0] == '*')
			valid = true;
		if (!valid)
		{
			GUC_check_errdetail("\"%.*s\" is neither a host name, nor an IP address, nor \"*\".",
								length, element);
			GUC_check_errhint("The port is set with changefeed.port.");
			return false;
		}
	}
	return true;
}

static bool
CheckUnixSocket(char **newval, void **extra, GucSource source)
{
	if (IsBlank(*newval))
		return true;
	if (!is_absolute_path(*newval))
	{
		GUC_check_errdetail("\"%s\" is not an absolute path.", *newval);
		return false;
	}
	if (strlen(*newval) >= sizeof(((struct sockaddr_un *) NULL)->sun_path))
	{
		GUC_check_errdetail("Paths of Unix sockets have at most %zu bytes.",
							sizeof(((struct sockaddr_un *) NULL)->sun_path) - 1);
		return false;
	}
	return true;
}

static const char *
ShowUnixSocketMode(void)
{
	static char text[16];

	snprintf(text, sizeof(text), "%04o", setting_unix_socket_mode);
	return text;
}

static bool
CheckAllowedOrigins(char **newval, void **extra, GucSource source)
{
	const char *at = IsBlank(*newval) ? NULL : *newval;
	const char *element;
	int length;

	while (NextElement(&at, &element, &length))
	{
		bool valid = false;
		int scheme = 0;

		if (length == 1 && element[0] == '*')
			continue;
		while (scheme < length &&
			   (isalnum((unsigned char) element[scheme]) || strchr("+-.", element[scheme]) != NULL))
			scheme++;
		if (scheme > 0 && isalpha((unsigned char) element[0]) && length - scheme > 3 &&
			strncmp(element + scheme, "://", 3) == 0)
			valid = HostIsValid(element + scheme + 3, length - scheme - 3, true);
		if (!valid)
		{
			GUC_check_errdetail("\"%.*s\" is not an origin.", length, element);
			GUC_check_errhint(
				"Write scheme://host or scheme://host:port without a path, such as https://app.example.com, or * for every origin.");
			return false;
		}
	}
	return true;
}

static bool
CheckAllowedHosts(char **newval, void **extra, GucSource source)
{
	const char *at = IsBlank(*newval) ? NULL : *newval;
	const char *element;
	int length;

	while (NextElement(&at, &element, &length))
	{
		if (length == 1 && element[0] == '*')
			continue;
		if (!HostIsValid(element, length, true))
		{
			GUC_check_errdetail("\"%.*s\" is not a host name.", length, element);
			GUC_check_errhint(
				"Write host or host:port, such as feed.example.com, or * for every host.");
			return false;
		}
	}
	return true;
}

static bool
CheckAdminAddresses(char **newval, void **extra, GucSource source)
{
	const char *at = IsBlank(*newval) ? NULL : *newval;
	const char *element;
	int length;

	while (NextElement(&at, &element, &length))
	{
		char text[64];

		if (length < (int) sizeof(text))
		{
			memcpy(text, element, length);
			text[length] = '\0';
			if (AdminAddressIsValid(text))
				continue;
		}
		GUC_check_errdetail("\"%.*s\" is neither an IP address nor a network.", length, element);
		GUC_check_errhint("Write 10.1.2.3, 10.0.0.0/8 or fd00::/8.");
		return false;
	}
	return true;
}

static bool
CheckIdentityClaims(char **newval, void **extra, GucSource source)
{
	const char *at = IsBlank(*newval) ? NULL : *newval;
	const char *element;
	int length;

	while (NextElement(&at, &element, &length))
	{
		if (length == 0)
		{
			GUC_check_errdetail("The list has an empty name.");
			return false;
		}
	}
	return true;
}

static bool
CheckRoleClaim(char **newval, void **extra, GucSource source)
{
	if (IsBlank(*newval))
	{
		GUC_check_errdetail("The name of the claim is empty.");
		return false;
	}
	return true;
}

static bool
CheckCookie(char **newval, void **extra, GucSource source)
{
	const char *name = *newval != NULL ? *newval : "";

	for (; *name != '\0'; name++)
	{
		/* A token of RFC 6265. */
		if (isalnum((unsigned char) *name) || strchr("!#$%&'*+-.^_`|~", *name) != NULL)
			continue;
		GUC_check_errdetail("\"%s\" is not the name of a cookie.", *newval);
		GUC_check_errhint("Write only the name, such as __Host-session.");
		return false;
	}
	return true;
}

/* ---- Definitions ---- */

static void
DefineNetworkSettings(void)
{
	DefineCustomIntVariable(
		"changefeed.port", "Port on which the change feed of a database accepts clients.",
		"WebSocket and the console share it. The port belongs to one database: with "
		"change feeds in several databases give each its own with ALTER DATABASE ... SET. "
		"0: none, for a server that only listens on changefeed.unix_socket. Takes effect when the feed worker "
		"starts.",
		&setting_port, 8040, 0, 65535, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.listen_addresses",
		"Host names or IP addresses on which the change feed accepts clients.",
		"A list separated by commas; * means all addresses, an empty list means none, which turns the "
		"network off. Before you open it beyond this machine, set changefeed.allowed_hosts and "
		"changefeed.allowed_origins. Takes effect when the feed worker starts.",
		&setting_listen_addresses, "localhost", PGC_SUSET, GUC_LIST_INPUT, CheckListenAddresses,
		NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.unix_socket", "Path of a Unix socket on which the change feed accepts clients.",
		"For a reverse proxy on this machine, beside the port or, with changefeed.port = 0, instead of it. No TLS "
		"is spoken there. The socket belongs to one database. Takes effect when the feed worker starts.",
		&setting_unix_socket, "", PGC_SUSET, 0, CheckUnixSocket, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.unix_socket_mode",
		"Access permissions of changefeed.unix_socket, as a number for chmod.",
		"To connect one needs permission to write; octal numbers begin with a zero. Takes effect when the feed worker "
		"starts.",
		&setting_unix_socket_mode, 0777, 0, 0777, PGC_SUSET, 0, NULL, NULL, ShowUnixSocketMode);

	DefineCustomStringVariable(
		"changefeed.tls_cert_file", "File with the certificate for TLS, in PEM format.",
		"The server's own certificate first, then those of its issuers. With it and changefeed.tls_key_file "
		"clients connect by https:// and wss:// only; empty: no TLS. If TLS cannot be used as it is set, the "
		"change feed does not listen, and the log says why. A relative name starts at the data directory. "
		"Reload the configuration after the file was changed: new connections get the new certificate, "
		"the others go on.",
		&setting_tls_cert_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.tls_key_file", "File with the private key for TLS, in PEM format.",
		"Without a passphrase. The file has to belong to the user that runs the server and be closed to everybody "
		"else (mode 0600), or to root and be readable by a group of that user at most (0640). A relative "
		"name starts at the data directory.",
		&setting_tls_key_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.allowed_origins",
		"Web origins whose pages may use the change feed from a browser.",
		"A list separated by commas of scheme://host[:port], such as https://app.example.com; * means "
		"every origin. Requests from other origins are refused; clients that are not browsers send no "
		"origin and are not concerned.",
		&setting_allowed_origins, "", PGC_SUSET, GUC_LIST_INPUT, CheckAllowedOrigins, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.allowed_hosts", "Host names under which clients may address the change feed.",
		"A list separated by commas of host[:port], compared with the Host header; * means every name. "
		"localhost and IP addresses are always accepted. Refusing other names keeps foreign web pages "
		"from reaching a local server through a name of their own (DNS rebinding).",
		&setting_allowed_hosts, "", PGC_SUSET, GUC_LIST_INPUT, CheckAllowedHosts, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.gateways",
		"Number of gateway processes that hold client connections of a database.",
		"One serves thousands of connections on one processor core. Several share the port and the clients "
		"evenly: more than one helps when it is busy all the time and there are cores to spare. Takes effect "
		"when the feed worker starts.",
		&setting_gateways, 1, 1, MAX_GATEWAYS, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_connections",
		"Largest number of client connections to a database's change feed.",
		"Further clients are refused with an error. The gateway needs one file descriptor for each.",
		&setting_max_connections, 10000, 1, 1000000, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_subscriptions", "Largest number of subscriptions of one client connection.",
		"Further ones are refused with an error; the connection goes on.",
		&setting_max_subscriptions, 1000, 1, 1000000, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("changefeed.max_message", "Largest message that a client may send.",
							"A connection that sends a larger one is closed.", &setting_max_message,
							64, 1, 16 * 1024, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_payload", "Largest payload of a message to the subscribers of a channel.",
		"Larger ones are refused with an error, whether a client publishes them, which "
		"changefeed.max_message limits as well, or changefeed.publish().",
		&setting_max_payload, 64, 1, MAX_PAYLOAD_KB, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_frame", "Largest message that a client is sent.",
		"Larger transactions and snapshots come in parts, which the client applies as a whole. A single row "
		"that is larger comes in a message of its own.",
		&setting_max_frame, 1024, 16, 64 * 1024, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_response", "Largest answer to a poll.",
		"A request to /v1/poll whose answer would be larger gets an error instead. All "
		"answers that clients have yet to take have 32 times as much; beyond it polls get an error, too.",
		&setting_max_response, 8 * 1024, 64, 1024 * 1024, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.send_buffer",
		"Changes that are buffered in the gateway for one client that reads too slowly.",
		"Beyond this the client is behind: it gets the changes from the history as it catches up, or a fresh "
		"snapshot when the history does not reach back far enough. Bounds the gateway's memory "
		"to this times the number of slow clients.",
		&setting_send_buffer, 1024, 64, 1024 * 1024, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomBoolVariable(
		"changefeed.compression", "Compresses what is sent to WebSocket clients that offer it.",
		"permessage-deflate, each message by itself; what would not get smaller is sent as it is. A change is "
		"compressed once for all who get it, a page of a snapshot for each client. Connections that "
		"are open keep what they have agreed on.",
		&setting_compression, false, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.heartbeat", "Time between two heartbeats to a client.",
		"A client that does not answer within this time and 10 seconds more is disconnected. Shorter than the "
		"idle time-out of any proxy on the way.",
		&setting_heartbeat, 25 * 1000, 1000, 3600 * 1000, PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.connect_timeout", "Time in which a new connection has to present itself.",
		"A connection that sends no valid \"connect\" message within this time is closed.",
		&setting_connect_timeout, 10 * 1000, 100, 600 * 1000, PGC_SUSET, GUC_UNIT_MS, NULL, NULL,
		NULL);

	DefineCustomStringVariable(
		"changefeed.admin_addresses",
		"Addresses that may read /metrics and use the console, besides this machine.",
		"A list separated by commas of IP addresses and networks, such as 10.0.0.0/8. It does not hold "
		"for requests that came through a proxy: these need a token of a role that is a member of "
		"pg_monitor.",
		&setting_admin_addresses, "", PGC_SUSET, GUC_LIST_INPUT, CheckAdminAddresses, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.health_max_lag",
		"Time within which /healthz wants to see that what was committed is delivered.",
		"With it, /healthz waits for so long before it says that the feed is failing. A monitor has to "
		"have more patience than that.",
		&setting_health_max_lag, 3000, 100, 60 * 1000, PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
}

static void
DefineIdentitySettings(void)
{
	DefineCustomStringVariable(
		"changefeed.jwt_secret_file", "File with the secret that signs tokens (HS256).",
		"The file has to belong to the user that runs the server and be closed to everybody else (mode "
		"0600). A relative name starts at the data directory. The secret itself is never kept in a "
		"setting or table. Reload the configuration after the file was changed.",
		&setting_jwt_secret_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.jwt_public_key_file",
		"File with the public key, in PEM format, that verifies tokens.",
		"For tokens signed with RS256 (RSA) or ES256 (P-256). A relative name starts at the data "
		"directory. Reload the configuration after the file was changed.",
		&setting_jwt_public_key_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.jwks_file", "File with a JSON Web Key Set that verifies tokens.",
		"For issuers with several or changing keys; a token's \"kid\" chooses among them. The server fetches "
		"nothing from the network: keep the file up to date by other means and reload the configuration. "
		"A relative name starts at the data directory.",
		&setting_jwks_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.jwt_audience", "Audience that a token has to name in its \"aud\" claim.",
		"Empty: the claim is not looked at. Set it when the same issuer signs tokens for other services.",
		&setting_jwt_audience, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.jwt_role_claim", "Claim of a token that names the client's database role.",
		"The role has to be admitted with changefeed.allow_role.", &setting_jwt_role_claim, "role",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY, CheckRoleClaim, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.identity_claims",
		"Claims that differ from token to token and are left out of a client's identity.",
		"A list separated by commas. The other claims and the role are the identity: clients with the "
		"same identity see the same rows and share the work of finding out which. Policies "
		"see only these other claims in request.jwt.claims. Takes effect when the feed worker starts.",
		&setting_identity_claims, "exp,iat,nbf,jti,session_id", PGC_SUSET, GUC_LIST_INPUT,
		CheckIdentityClaims, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.anon_role", "Database role of clients that present no token.",
		"Empty: such clients are refused. The role has to be admitted with changefeed.allow_role.",
		&setting_anon_role, "", PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.token_cookie", "Name of a cookie in which browsers send their token.",
		"Empty: cookies are not read. The token in the header Authorization or in the address goes first. "
		"Where the cookie is all that a request has, pages of other origins are refused unless "
		"changefeed.allowed_origins names them; * is not enough.",
		&setting_token_cookie, "", PGC_SUSET, 0, CheckCookie, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.policy_timeout",
		"Longest time that a check of policies for one batch of rows may take, casts to json included.",
		"A client whose policies take longer gets an error and loses the subscription; other clients are not "
		"concerned.",
		&setting_policy_timeout, 1000, 10, 600 * 1000, PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomBoolVariable(
		"changefeed.inline_policies",
		"Evaluate policies in the feed worker if they only compare columns with claims.",
		"changefeed.explain says which ones these are. Query workers evaluate the others, or all of them when it is "
		"off, with the same results.",
		&setting_inline_policies, true, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.recheck_interval",
		"Time after which policies that depend on more than tables are evaluated again.",
		"Of what a client sees by the time, by functions of which nobody knows what they read, or by tables "
		"that are not in the WAL, changes reach the client after this time at the latest. 0 turns it off: "
		"then they reach it with the next snapshot.",
		&setting_recheck_interval, 60, 0, 24 * 3600, PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomBoolVariable(
		"changefeed.audience_index", "Finds those whom a changed row concerns by the values in it.",
		"Off, the conditions and policies of everybody who is subscribed to the channel are tried on each "
		"changed row, with the same result.",
		&setting_audience_index, true, PGC_SUSET, 0, NULL, NULL, NULL);
}

static const struct config_enum_entry decoders[] = {{"native", DECODER_NATIVE, false},
													{"wal2json", DECODER_WAL2JSON, false},
													{NULL, 0, false}};

static void
DefineWorkSettings(void)
{
	DefineCustomEnumVariable(
		"changefeed.decoder", "What turns the WAL of a database into changes.",
		"native is this extension's own output plugin. wal2json is another one, to be installed separately, "
		"for tables whose columns have types that its text does not lose. With another decoder "
		"comes another replication slot, and every client gets a fresh snapshot. Takes effect "
		"when the decoder starts, which it does again when the configuration file changes this.",
		&setting_decoder, DECODER_NATIVE, decoders, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.query_workers",
		"Number of background workers that run queries for the change feed of a database.",
		"They take snapshots and check policies that read other tables or call functions. Each "
		"counts against max_worker_processes, as do two more workers for each database, one more "
		"when there are snapshots that take long, and one more when there are policies that do. "
		"Takes effect when the feed worker starts.",
		&setting_query_workers, 2, 1, 64, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.call_workers",
		"Largest number of calls of functions that run at a time for the clients of a database.",
		"Each runs in a background worker that is started when it is first needed and counts against "
		"max_worker_processes. Calls beyond that wait. 0: there are no calls. "
		"Takes effect when the feed worker starts.",
		&setting_call_workers, 2, 0, 64, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.call_timeout", "Longest time that a client's call of a function may take.",
		"Waiting for locks is part of it, waiting for a worker is not. A call that takes longer is rolled "
		"back, and the client gets an error.",
		&setting_call_timeout, 10 * 1000, 10, 3600 * 1000, PGC_SUSET, GUC_UNIT_MS, NULL, NULL,
		NULL);

	DefineCustomIntVariable(
		"changefeed.idempotency_age",
		"Time for which results of calls that clients make with a key are kept.",
		"A client that repeats a call with the same key within this time gets the result of the first "
		"one, and nothing is done twice.",
		&setting_idempotency_age, 24 * 3600, 1, 30 * 24 * 3600, PGC_SUSET, GUC_UNIT_S, NULL, NULL,
		NULL);

	DefineCustomIntVariable(
		"changefeed.worker_memory", "Memory that the feed worker of a database may use.",
		"For the history, subscriptions and identities. When it is used up the history is "
		"shortened first, then new subscriptions are refused, then new connections.",
		&setting_worker_memory, 256 * 1024, 16 * 1024, MAX_KB, PGC_SUSET, GUC_UNIT_KB, NULL, NULL,
		NULL);

	DefineCustomIntVariable(
		"changefeed.snapshot_space",
		"Disk space for the snapshots of a database that are on their way to clients.",
		"Snapshots of more than 64 kB are temporary files until the client has taken them, those with the same "
		"content once for all. One that is larger is an error. When all of them are, no further one is begun until "
		"there is space; a client that has been taking one for more than a minute is then disconnected.",
		&setting_snapshot_space, 8192, 16, INT_MAX, PGC_SUSET, GUC_UNIT_MB, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.history_size", "Memory for recent changes, from which clients catch up.",
		"A client that was away, or reads slowly, for longer than the history reaches gets a fresh snapshot. "
		"Part of changefeed.worker_memory.",
		&setting_history_size, 64 * 1024, 1024, MAX_KB, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.history_age",
		"Time for which recent changes are kept, so that clients can catch up.",
		"changefeed.history_size and changefeed.history_wal_size may end it earlier.",
		&setting_history_age, 300, 1, 7 * 24 * 3600, PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.history_wal_size",
		"WAL that the change feed of a database may keep from being removed.",
		"When it is exceeded, because of a transaction that stays open or a standby that does not confirm, the "
		"replication slot is given up and every client gets a fresh snapshot, so that the disk does not "
		"fill.",
		&setting_history_wal_size, 1024, 64, INT_MAX, PGC_SUSET, GUC_UNIT_MB, NULL, NULL, NULL);

	DefineCustomBoolVariable(
		"changefeed.failover_slot", "Lets standbys keep a copy of the replication slot.",
		"A standby with sync_replication_slots goes on from it when it is promoted, with the same epoch, so that "
		"clients resume. Needs PostgreSQL 17. Takes effect when the decoder starts.",
		&setting_failover_slot, false, PGC_SUSET, 0, CheckFailoverSlot, NULL, NULL);

	DefineCustomIntVariable("changefeed.max_transaction",
							"Largest transaction that is sent as single changes.",
							"The subscriptions concerned by a larger one get a fresh snapshot.",
							&setting_max_transaction, 16 * 1024, 64, 1024 * 1024, PGC_SUSET,
							GUC_UNIT_KB, NULL, NULL, NULL);
}

void
SettingsDefine(void)
{
	DefineNetworkSettings();
	DefineIdentitySettings();
	DefineWorkSettings();
	SettingsDefineLimits();

	MarkGUCPrefixReserved("changefeed");
}

/*-------------------------------------------------------------------------
 *
 * settings_limits.c
 *		The settings that say who may connect, how often, and how much clients may
 *		send.  What holds for settings.c holds here.
 *
 * Process: any that loads the library.  Locks: none.  Memory: check hooks
 * allocate nothing that outlives them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "network.h"
#include "pg_changefeed.h"

#include <limits.h>

#include "utils/guc.h"
#include "utils/varlena.h"

int setting_max_connections_per_address;
int setting_max_connections_per_user;
int setting_max_handshake_rate;
int setting_max_handshake_rate_per_address;
int setting_handshake_timeout;
int setting_max_message_rate;
int setting_max_receive_rate;
char *setting_trusted_proxies;
int setting_forwarded_header;
char *setting_allowed_addresses;
char *setting_denied_addresses;

/* Each is compared with every client. */
#define MAX_NETWORKS 1000

static const struct config_enum_entry forwarded_headers[] = {
	{"x-forwarded-for", FORWARDED_HEADER_X, false},
	{"forwarded", FORWARDED_HEADER_STANDARD, false},
	{NULL, 0, false}};

static bool
NetworksAreValid(const char *value, const char *word)
{
	char *copy = pstrdup(value);
	List *list = NIL;
	ListCell *lc;
	bool valid = true;

	if (!SplitGUCList(copy, ',', &list))
	{
		GUC_check_errdetail("The list has an empty element.");
		valid = false;
	}
	else if (list_length(list) > MAX_NETWORKS)
	{
		GUC_check_errdetail("The list has %d elements; at most %d are possible.", list_length(list),
							MAX_NETWORKS);
		valid = false;
	}
	foreach(lc, list)
	{
		const char *text = lfirst(lc);
		Network network;
		NetworkResult result;

		if (!valid)
			break;
		if (word != NULL && strcmp(text, word) == 0)
			continue;
		result = NetworkParse(text, strlen(text), &network);
		if (result == NETWORK_OK)
			continue;
		valid = false;
		if (result == NETWORK_HOST_BITS)
		{
			GUC_check_errdetail("\"%s\" has bits set to the right of its mask.", text);
			GUC_check_errhint("Write the network's first address, such as 10.1.0.0/16.");
		}
		else
		{
			GUC_check_errdetail("\"%s\" is neither an IP address nor a network.", text);
			GUC_check_errhint("Write an address or a network in CIDR notation, such as 192.0.2.1, "
							  "10.0.0.0/8 or 2001:db8::/32.");
		}
	}
	list_free(list);
	pfree(copy);
	return valid;
}

static bool
CheckNetworks(char **newval, void **extra, GucSource source)
{
	return *newval == NULL || NetworksAreValid(*newval, NULL);
}

static bool
CheckProxies(char **newval, void **extra, GucSource source)
{
	return *newval == NULL || NetworksAreValid(*newval, "unix");
}

static void
DefineAddressSettings(void)
{
	DefineCustomStringVariable(
		"changefeed.allowed_addresses", "Addresses from which clients may connect.",
		"A list separated by commas of IP addresses and networks in CIDR notation, IPv4 and IPv6; an empty list "
		"means all. Others get an error. A reload closes connections that are not allowed any more. "
		"Unix sockets have no address and are not concerned.",
		&setting_allowed_addresses, "", PGC_SUSET, GUC_LIST_INPUT, CheckNetworks, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.denied_addresses", "Addresses from which clients may not connect.",
		"A list as in changefeed.allowed_addresses, and before it. Their connections are closed before anything "
		"is read; those through a trusted proxy get an error. A reload closes connections that are "
		"denied now.",
		&setting_denied_addresses, "", PGC_SUSET, GUC_LIST_INPUT, CheckNetworks, NULL, NULL);

	DefineCustomStringVariable(
		"changefeed.trusted_proxies",
		"Addresses of reverse proxies that say truthfully who their clients are.",
		"A list separated by commas of IP addresses and networks in CIDR notation; unix stands for "
		"changefeed.unix_socket. The header changefeed.forwarded_header of their requests gives the "
		"client's address: read from the right, the first one that is not in this list. It counts for "
		"address lists and limits, and is shown in stat_connections. From others the header is ignored.",
		&setting_trusted_proxies, "", PGC_SUSET, GUC_LIST_INPUT, CheckProxies, NULL, NULL);

	DefineCustomEnumVariable(
		"changefeed.forwarded_header", "Header in which trusted proxies name their clients.",
		"x-forwarded-for or forwarded; the other one is ignored, as a proxy may pass it on as a client wrote it. "
		"A proxy that sends Forwarded has to replace what the client sent.",
		&setting_forwarded_header, FORWARDED_HEADER_X, forwarded_headers, PGC_SUSET, 0, NULL, NULL,
		NULL);
}

static void
DefineConnectionLimits(void)
{
	DefineCustomIntVariable(
		"changefeed.max_connections_per_address",
		"Largest number of client connections from one address.",
		"Connections that have not sent their request yet count, too. Further ones are refused with an error. "
		"An IPv6 address counts by its first 64 bits. Behind a proxy all clients have one address, unless "
		"changefeed.trusted_proxies names it. Each gateway counts for itself. 0: no limit.",
		&setting_max_connections_per_address, 0, 0, 1000000, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_connections_per_user", "Largest number of client connections of one user.",
		"A user is the claim sub of the token; clients whose token has none are told apart by role and claims. "
		"Further connections get an error and are closed; those that are there go on. 0: no limit.",
		&setting_max_connections_per_user, 0, 0, 1000000, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_handshake_rate",
		"Largest number of new connections and requests per second.",
		"After a pause, ten seconds' worth may come at once. Further ones are refused with an error that says when "
		"to come again; with TLS they are closed before its handshake. Divided between the gateways. 0: no "
		"limit.",
		&setting_max_handshake_rate, 1000, 0, 1000000, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_handshake_rate_per_address",
		"Largest number of new connections and requests per second from one address.",
		"As changefeed.max_handshake_rate, with addresses as in changefeed.max_connections_per_address. 0: no limit.",
		&setting_max_handshake_rate_per_address, 0, 0, 1000000, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.handshake_timeout",
		"Time that a client has for its request, and then for the request's body.",
		"It includes the TLS handshake. A client that is slower is disconnected.",
		&setting_handshake_timeout, 10 * 1000, 1000, 60 * 1000, PGC_SUSET, GUC_UNIT_MS, NULL, NULL,
		NULL);
}

static void
DefineRateLimits(void)
{
	DefineCustomIntVariable(
		"changefeed.max_message_rate", "Largest number of messages per second from one connection.",
		"After a pause, ten seconds' worth may come at once. A connection that sends more is not read for a moment; "
		"one that goes on like that for ten seconds gets an error and is closed. A message in several frames "
		"counts as many. 0: no limit.",
		&setting_max_message_rate, 100, 0, 100000, PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"changefeed.max_receive_rate", "Most that is received per second from one connection.",
		"As changefeed.max_message_rate, in bytes. 0: no limit.", &setting_max_receive_rate, 256, 0,
		1024 * 1024, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
}

void
SettingsDefineLimits(void)
{
	DefineAddressSettings();
	DefineConnectionLimits();
	DefineRateLimits();
}

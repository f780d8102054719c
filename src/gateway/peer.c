/*-------------------------------------------------------------------------
 *
 * peer.c
 *		Who is on the other side of a connection.
 *
 * A proxy on this machine makes every client of the world look like one of this
 * machine.  What is served to loopback addresses only must not go through one,
 * so whatever shows that a request has been passed on ends that privilege: a
 * header that proxies add, a Host that is a name of the outside, a Unix socket,
 * on which only proxies are expected.  No header can give it.  A proxy that
 * adds none and writes its own Host leaves no trace: see doc/operations.md.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <strings.h>

#include "gateway.h"

/* Those that lws has no number for, in lower case and with their colon. */
static const char *const forwarding_headers[] = {
	"forwarded:",		   "x-forwarded-host:", "x-forwarded-proto:", "x-forwarded-port:",
	"x-forwarded-server:", "x-real-ip:",		"true-client-ip:",	  "cf-connecting-ip:",
};

/* Proxies say so, whatever they say of whom. */
bool
PeerWasForwarded(struct lws *wsi)
{
	size_t i;

	if (lws_hdr_total_length(wsi, WSI_TOKEN_X_FORWARDED_FOR) > 0 ||
		lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_X_REAL_IP) > 0 ||
		lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_VIA) > 0)
		return true;
	for (i = 0; i < sizeof(forwarding_headers) / sizeof(forwarding_headers[0]); i++)
	{
		if (lws_hdr_custom_length(wsi, forwarding_headers[i],
								  (int) strlen(forwarding_headers[i])) >= 0)
			return true;
	}
	return false;
}

/* Does the Host header name this machine from within? */
static bool
HostIsLoopback(struct lws *wsi)
{
	char host[64];
	struct in_addr v4;
	size_t n;

	if (lws_hdr_copy(wsi, host, (int) sizeof(host), WSI_TOKEN_HOST) <= 0)
		return false;
	if (strncmp(host, "[::1]", 5) == 0)
		return host[5] == '\0' || host[5] == ':';
	n = strcspn(host, ":");
	host[n] = '\0';
	return strcasecmp(host, "localhost") == 0 ||
		   (inet_pton(AF_INET, host, &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127);
}

/*
 * Was the request made by a program on this machine?  Only while lws handles
 * the request: its headers are looked at.
 */
bool
PeerIsThisMachine(struct lws *wsi)
{
	return VisitorIsLoopback(wsi) && HostIsLoopback(wsi) && !PeerWasForwarded(wsi);
}

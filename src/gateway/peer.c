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
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "gateway.h"

/* Those that lws has no number for, in lower case and with their colon. */
static const char *const forwarding_headers[] = {
	"forwarded:",		   "x-forwarded-host:", "x-forwarded-proto:", "x-forwarded-port:",
	"x-forwarded-server:", "x-real-ip:",		"true-client-ip:",	  "cf-connecting-ip:",
};

/*
 * The other side's address as text, an IPv4 address in IPv6 clothes as plain
 * IPv4.  Returns whether it is a loopback address.
 */
static bool
Address(int fd, char *text, size_t size)
{
	union
	{
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
		struct sockaddr_un local;
		struct sockaddr_storage storage;
	} peer;
	socklen_t length = sizeof(peer);
	struct in_addr v4;

	memset(&peer, 0, sizeof(peer));
	snprintf(text, size, "unknown");
	if (getpeername(fd, &peer.any, &length) < 0)
		return false;

	switch (peer.any.sa_family)
	{
		case AF_UNIX:
			snprintf(text, size, "local");
			return false;
		case AF_INET:
			v4 = peer.v4.sin_addr;
			break;
		case AF_INET6:
			if (!IN6_IS_ADDR_V4MAPPED(&peer.v6.sin6_addr))
			{
				if (inet_ntop(AF_INET6, &peer.v6.sin6_addr, text, (socklen_t) size) == NULL)
					return false;
				return IN6_IS_ADDR_LOOPBACK(&peer.v6.sin6_addr);
			}
			memcpy(&v4, peer.v6.sin6_addr.s6_addr + 12, sizeof(v4));
			break;
		default:
			return false;
	}
	if (inet_ntop(AF_INET, &v4, text, (socklen_t) size) == NULL)
		return false;
	return (ntohl(v4.s_addr) >> 24) == 127;
}

/* The address for logs and statistics. */
void
PeerText(struct lws *wsi, char *text, size_t size)
{
	(void) Address(lws_get_socket_fd(wsi), text, size);
}

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
	char text[64];

	return Address(lws_get_socket_fd(wsi), text, sizeof(text)) && HostIsLoopback(wsi) &&
		   !PeerWasForwarded(wsi);
}

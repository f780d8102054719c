/*-------------------------------------------------------------------------
 *
 * tls.c
 *		TLS: the certificate in use, and the lws vhost that speaks it.
 *
 * The feed worker has read and checked certificate and key; they come over the
 * link, the key in an anonymous file so that no buffer of the link ever holds
 * it.  Each handshake takes the pair that is in use at that moment, so another
 * one serves the next client while the connections that are there go on.
 *
 * lws has a vhost for TLS beside the one without, made when it is first needed.
 * It matters only until the handshake is done: lws chooses a vhost again by the
 * Host header.  So nothing may depend on the vhost of a request, and lws is not
 * asked to let plain HTTP through to be answered: it is dropped.
 *
 * Process: gateway.  Memory: the pair is ours; a handshake takes references.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "gateway.h"
#include "tls_pair.h"

/* The feed worker reads no longer ones. */
#define MAX_KEY 65536

static struct lws_vhost *vhost;
static TlsPair current;
static bool enabled;
static bool is_set_up; /* lws has asked for it */

/* The vhost for the next connection over TCP. */
struct lws_vhost *
TlsVhost(void)
{
	return enabled ? vhost : gateway.vhost;
}

static int
OnHandshake(SSL *ssl, void *arg)
{
	(void) arg;
	return SSL_use_cert_and_key(ssl, current.certificate, current.key, current.chain, 1);
}

/* lws' LOAD_EXTRA_SERVER_VERIFY_CERTS: false stops the making of the vhost. */
bool
TlsSetUp(void *context)
{
	/* That of lws looks for a vhost by name, and ours have the same. */
	SSL_CTX_set_tlsext_servername_callback((SSL_CTX *) context, NULL);
	SSL_CTX_set_cert_cb((SSL_CTX *) context, OnHandshake, NULL);
	is_set_up = TlsContextRestrict((SSL_CTX *) context);
	return is_set_up;
}

/* Fills `key` and returns its length, or 0. */
static size_t
ReadKey(int fd, char *key)
{
	size_t length = 0;

	while (length < MAX_KEY)
	{
		ssize_t n = pread(fd, key + length, MAX_KEY - length, (off_t) length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		length += (size_t) n;
	}
	return length;
}

/* LINK_TLS */
void
TlsTake(WireReader *r, int fd)
{
	static char key[MAX_KEY];
	WireBytes certificates = WireGetBytes(r);
	TlsPair pair;
	TlsProblem problem;
	char reason[128];
	size_t length;

	if (!WireAtEnd(r) || (certificates.length > 0) != (fd >= 0))
	{
		r->failed = true;
		return;
	}
	if (fd < 0)
	{
		enabled = false;
		TlsPairFree(&current);
		return;
	}
	length = ReadKey(fd, key);
	problem = TlsPairRead(&pair, certificates.data, certificates.length, key, length, reason,
						  sizeof(reason));
	explicit_bzero(key, sizeof(key));
	if (problem != TLS_FINE)
		GatewayFatal(EXIT_PROTOCOL, "the certificate on the link cannot be used (%d) %s",
					 (int) problem, reason);
	TlsPairFree(&current);
	current = pair;
	enabled = true;
	if (vhost != NULL)
		return;
	vhost = ServerMakeVhost("tls", LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT |
									   LWS_SERVER_OPTION_CREATE_VHOST_SSL_CTX);
	/* Without these options lws makes a vhost that speaks plain HTTP. */
	if (!is_set_up)
		GatewayFatal(EXIT_FAILED, "libwebsockets has made no TLS context");
}

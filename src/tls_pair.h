/*-------------------------------------------------------------------------
 *
 * tls_pair.h
 *		A TLS certificate with its chain and private key, read from PEM.
 *
 * One module for both ends of the link: the feed worker finds out with it
 * whether the files that the settings name can be used, and the gateway uses
 * them.  What the one accepts the other accepts.
 *
 * Process: feed worker and gateway.  No Postgres headers here.  Memory: OpenSSL's
 * objects belong to the pair, TlsPairFree gives them back.  No function of this
 * module calls back or longjmps.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_TLS_PAIR_H
#define CHANGEFEED_TLS_PAIR_H

#include <stdbool.h>
#include <stddef.h>
#include <openssl/ssl.h>

typedef struct TlsPair
{
	X509 *certificate;
	STACK_OF(X509) * chain; /* those behind it in the file */
	EVP_PKEY *key;
} TlsPair;

/* What is wrong, as the end of a sentence about the file. */
typedef enum TlsProblem
{
	TLS_FINE,
	TLS_NO_CERTIFICATE,
	TLS_BAD_CHAIN,
	TLS_NO_KEY,
	TLS_KEY_ENCRYPTED,
	TLS_MISMATCH,
	TLS_REFUSED, /* OpenSSL says why */
	TLS_NO_MEMORY
} TlsProblem;

/*
 * Reads both; `reason` gets OpenSSL's words about TLS_REFUSED.  Unless
 * TLS_FINE is returned the pair is empty.
 */
extern TlsProblem TlsPairRead(TlsPair *pair, const char *certificates, size_t certificates_length,
							  const char *key, size_t key_length, char *reason, size_t reason_size);
extern void TlsPairFree(TlsPair *pair);

/* -1: not valid yet, 1: not valid any more, 0: valid. */
extern int TlsPairAge(const TlsPair *pair);

/* Its end of validity, as OpenSSL writes it. */
extern void TlsPairValidUntil(const TlsPair *pair, char *text, size_t size);

/* What every TLS context of ours is like. */
extern bool TlsContextRestrict(SSL_CTX *context);

#endif /* CHANGEFEED_TLS_PAIR_H */

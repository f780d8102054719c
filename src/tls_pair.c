/*-------------------------------------------------------------------------
 *
 * tls_pair.c
 *		A TLS certificate with its chain and private key, read from PEM.
 *
 * Whether a pair is good is asked of a TLS context that is thrown away: so the
 * answer includes what OpenSSL's security level has against a weak key, and is
 * the one that a handshake would give.
 *
 * Process: feed worker and gateway.  Memory: see tls_pair.h; the text of the
 * private key is only borrowed, and copied nowhere but into OpenSSL's objects.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "tls_pair.h"

#define MAX_CHAIN 16

/* Forward secrecy and authenticated encryption; TLS 1.3 has nothing else. */
#define CIPHERS "ECDHE+AESGCM:ECDHE+CHACHA20"

/* OpenSSL asks for a passphrase: there is nobody to give one. */
static int
NoPassphrase(char *buffer, int size, int writing, void *asked)
{
	(void) buffer;
	(void) size;
	(void) writing;
	*(bool *) asked = true;
	return -1;
}

static TlsProblem
ReadCertificates(TlsPair *pair, const char *data, size_t length)
{
	BIO *bio = BIO_new_mem_buf(data, (int) length);
	X509 *next;
	TlsProblem problem = TLS_FINE;
	unsigned long error;

	if (bio == NULL)
		return TLS_NO_MEMORY;
	pair->chain = sk_X509_new_null();
	pair->certificate = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL);
	if (pair->chain == NULL)
		problem = TLS_NO_MEMORY;
	else if (pair->certificate == NULL)
		problem = TLS_NO_CERTIFICATE;
	while (problem == TLS_FINE && (next = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL)
	{
		if (sk_X509_num(pair->chain) == MAX_CHAIN || sk_X509_push(pair->chain, next) == 0)
		{
			X509_free(next);
			problem = TLS_BAD_CHAIN;
		}
	}

	/* The end of the file is an error, too; any other is one of the file. */
	error = ERR_peek_last_error();
	if (problem == TLS_FINE && error != 0 &&
		!(ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE))
		problem = TLS_BAD_CHAIN;
	ERR_clear_error();
	BIO_free(bio);
	return problem;
}

static TlsProblem
ReadKey(TlsPair *pair, const char *data, size_t length)
{
	BIO *bio = BIO_new_mem_buf(data, (int) length);
	bool asked = false;

	if (bio == NULL)
		return TLS_NO_MEMORY;
	pair->key = PEM_read_bio_PrivateKey(bio, NULL, NoPassphrase, &asked);
	ERR_clear_error();
	BIO_free(bio);
	if (pair->key != NULL)
		return TLS_FINE;
	return asked ? TLS_KEY_ENCRYPTED : TLS_NO_KEY;
}

static TlsProblem
Try(const TlsPair *pair, char *reason, size_t reason_size)
{
	SSL_CTX *context;
	TlsProblem problem = TLS_FINE;

	if (X509_check_private_key(pair->certificate, pair->key) != 1)
	{
		ERR_clear_error();
		return TLS_MISMATCH;
	}
	context = SSL_CTX_new(TLS_server_method());
	if (context == NULL)
		return TLS_NO_MEMORY;
	if (!TlsContextRestrict(context) ||
		SSL_CTX_use_cert_and_key(context, pair->certificate, pair->key, pair->chain, 1) != 1)
	{
		const char *text = ERR_reason_error_string(ERR_peek_last_error());

		strncpy(reason, text != NULL ? text : "unknown error", reason_size - 1);
		reason[reason_size - 1] = '\0';
		problem = TLS_REFUSED;
	}
	ERR_clear_error();
	SSL_CTX_free(context);
	return problem;
}

TlsProblem
TlsPairRead(TlsPair *pair, const char *certificates, size_t certificates_length, const char *key,
			size_t key_length, char *reason, size_t reason_size)
{
	TlsProblem problem;

	memset(pair, 0, sizeof(*pair));
	reason[0] = '\0';
	ERR_clear_error();
	problem = ReadCertificates(pair, certificates, certificates_length);
	if (problem == TLS_FINE)
		problem = ReadKey(pair, key, key_length);
	if (problem == TLS_FINE)
		problem = Try(pair, reason, reason_size);
	if (problem != TLS_FINE)
		TlsPairFree(pair);
	return problem;
}

void
TlsPairFree(TlsPair *pair)
{
	X509_free(pair->certificate);
	sk_X509_pop_free(pair->chain, X509_free);
	EVP_PKEY_free(pair->key);
	memset(pair, 0, sizeof(*pair));
}

int
TlsPairAge(const TlsPair *pair)
{
	if (X509_cmp_current_time(X509_get0_notBefore(pair->certificate)) > 0)
		return -1;
	return X509_cmp_current_time(X509_get0_notAfter(pair->certificate)) < 0 ? 1 : 0;
}

void
TlsPairValidUntil(const TlsPair *pair, char *text, size_t size)
{
	BIO *bio = BIO_new(BIO_s_mem());
	int n = 0;

	if (bio != NULL && ASN1_TIME_print(bio, X509_get0_notAfter(pair->certificate)) == 1)
		n = BIO_read(bio, text, (int) size - 1);
	text[n > 0 ? n : 0] = '\0';
	BIO_free(bio);
}

/*
 * No tickets and no session cache, as in the server itself: keys of tickets
 * would undo the forward secrecy for as long as the process lives, and with
 * several gateways a client would rarely come back to the one that knows it.
 */
bool
TlsContextRestrict(SSL_CTX *context)
{
	SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
									 SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_TICKET);
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	return SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) == 1 &&
		   SSL_CTX_set_num_tickets(context, 0) == 1 &&
		   SSL_CTX_set_cipher_list(context, CIPHERS) == 1;
}

/*-------------------------------------------------------------------------
 *
 * network.c
 *		Addresses of the internet, and networks in CIDR notation.  See network.h.
 *
 * Process: gateway, and any that checks settings.  Memory: none.
 *
 *-------------------------------------------------------------------------
 */
#include "network.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#define V4_PREFIX_BITS 96

static const uint8_t v4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static void
FromV4(const void *v4, Address *address)
{
	memcpy(address->bytes, v4_prefix, sizeof(v4_prefix));
	memcpy(address->bytes + sizeof(v4_prefix), v4, 4);
}

bool
AddressParse(const char *text, size_t length, Address *address)
{
	char copy[ADDRESS_TEXT];
	uint8_t v4[4];

	if (length == 0 || length >= sizeof(copy))
		return false;
	memcpy(copy, text, length);
	copy[length] = '\0';
	if (strlen(copy) != length)
		return false;
	if (inet_pton(AF_INET, copy, v4) == 1)
	{
		FromV4(v4, address);
		return true;
	}
	return inet_pton(AF_INET6, copy, address->bytes) == 1;
}

void
AddressToText(const Address *address, char *text, size_t size)
{
	const char *done = AddressIsV4(address)
						   ? inet_ntop(AF_INET, address->bytes + sizeof(v4_prefix), text,
									   (socklen_t) size)
						   : inet_ntop(AF_INET6, address->bytes, text, (socklen_t) size);

	if (done == NULL)
		snprintf(text, size, "unknown");
}

bool
AddressOfSocket(const struct sockaddr *socket, Address *address)
{
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;

	switch (socket->sa_family)
	{
		case AF_INET:
			memcpy(&v4, socket, sizeof(v4));
			FromV4(&v4.sin_addr, address);
			return true;
		case AF_INET6:
			memcpy(&v6, socket, sizeof(v6));
			memcpy(address->bytes, &v6.sin6_addr, sizeof(address->bytes));
			return true;
		default:
			return false;
	}
}

bool
AddressIsV4(const Address *address)
{
	return memcmp(address->bytes, v4_prefix, sizeof(v4_prefix)) == 0;
}

bool
AddressIsLoopback(const Address *address)
{
	struct in6_addr v6;

	if (AddressIsV4(address))
		return address->bytes[sizeof(v4_prefix)] == 127;
	memcpy(&v6, address->bytes, sizeof(v6));
	return IN6_IS_ADDR_LOOPBACK(&v6);
}

/* Are the first `bits` of the two the same? */
static bool
SameBits(const Address *a, const Address *b, unsigned bits)
{
	unsigned bytes = bits / 8;
	uint8_t mask = (uint8_t) (0xff << (8 - bits % 8));

	return memcmp(a->bytes, b->bytes, bytes) == 0 &&
		   (bits % 8 == 0 || ((a->bytes[bytes] ^ b->bytes[bytes]) & mask) == 0);
}

NetworkResult
NetworkParse(const char *text, size_t length, Network *network)
{
	const char *slash = memchr(text, '/', length);
	size_t address_length = slash != NULL ? (size_t) (slash - text) : length;
	bool dotted = memchr(text, ':', address_length) == NULL;
	unsigned least = dotted ? V4_PREFIX_BITS : 0;
	unsigned bits = 0;
	unsigned i;

	if (!AddressParse(text, address_length, &network->address))
		return NETWORK_MALFORMED;
	if (slash == NULL)
	{
		network->bits = ADDRESS_BYTES * 8;
		return NETWORK_OK;
	}
	if (slash + 1 == text + length || text + length - slash > 4 ||
		(slash[1] == '0' && slash + 2 != text + length))
		return NETWORK_MALFORMED;
	for (slash++; slash < text + length; slash++)
	{
		if (*slash < '0' || *slash > '9')
			return NETWORK_MALFORMED;
		bits = bits * 10 + (unsigned) (*slash - '0');
	}
	bits += least;
	if (bits > ADDRESS_BYTES * 8)
		return NETWORK_MALFORMED;
	for (i = bits; i < ADDRESS_BYTES * 8; i++)
	{
		if ((network->address.bytes[i / 8] & (0x80 >> (i % 8))) != 0)
			return NETWORK_HOST_BITS;
	}
	network->bits = (uint8_t) bits;
	return NETWORK_OK;
}

bool
NetworkHolds(const Network *network, const Address *address)
{
	bool v4 = network->bits >= V4_PREFIX_BITS && AddressIsV4(&network->address);

	return AddressIsV4(address) == v4 && SameBits(&network->address, address, network->bits);
}

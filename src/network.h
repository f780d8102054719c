/*-------------------------------------------------------------------------
 *
 * network.h
 *		Addresses of the internet, and networks in CIDR notation.
 *
 * An address is 16 bytes, those of IPv6; an IPv4 address is the IPv6 address
 * that is mapped to it (::ffff:a.b.c.d).  So the two compare alike, but a network
 * of one never holds an address of the other: who writes ::/0 means IPv6.
 *
 * Process: gateway, and any that checks settings.  No Postgres headers here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_NETWORK_H
#define CHANGEFEED_NETWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define ADDRESS_BYTES 16

/* Long enough for any address as text. */
#define ADDRESS_TEXT 48

typedef struct Address
{
	uint8_t bytes[ADDRESS_BYTES];
} Address;

typedef struct Network
{
	Address address;
	uint8_t bits; /* of `address`; those behind are 0 */
} Network;

typedef enum NetworkResult
{
	NETWORK_OK,
	NETWORK_MALFORMED,
	NETWORK_HOST_BITS /* an address with a length that cuts it off */
} NetworkResult;

extern bool AddressParse(const char *text, size_t length, Address *address);
extern void AddressToText(const Address *address, char *text, size_t size);
extern bool AddressOfSocket(const struct sockaddr *socket, Address *address);
extern bool AddressIsV4(const Address *address);
extern bool AddressIsLoopback(const Address *address);

/* "address" or "address/bits". */
extern NetworkResult NetworkParse(const char *text, size_t length, Network *network);
extern bool NetworkHolds(const Network *network, const Address *address);

#endif /* CHANGEFEED_NETWORK_H */

/*-------------------------------------------------------------------------
 *
 * network.c
 *		Addresses and networks (src/network.c), and other texts of headers that
 *		need no connection: lists, ETags, UTF-8.
 *
 * Input: a byte that says what it is, and the text.
 *
 * Properties: an address is accepted if inet_pton() does, and as text it is the
 * same address again; a network holds its own address, and with all its bits
 * nobody else; UTF-8 is what iconv() takes for it.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <iconv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
Fail(const char *what)
{
	fprintf(stderr, "fuzz: %s\n", what);
	abort();
}

static void
CheckAddress(const char *text, size_t length)
{
	char *copy = strndup(text, length);
	unsigned char binary[16];
	Address address;
	Address again;
	char shown[ADDRESS_TEXT];
	bool good = AddressParse(text, length, &address);

	if (good != (strlen(copy) == length &&
				 (inet_pton(AF_INET, copy, binary) == 1 || inet_pton(AF_INET6, copy, binary) == 1)))
		Fail("inet_pton says something else of an address");
	free(copy);
	if (!good)
		return;
	AddressToText(&address, shown, sizeof(shown));
	if (!AddressParse(shown, strlen(shown), &again) ||
		memcmp(&address, &again, sizeof(address)) != 0)
		Fail("an address is another one as text");
	(void) AddressIsLoopback(&address);
}

static void
CheckNetwork(const char *text, size_t length)
{
	const char *separator = memchr(text, ' ', length);
	size_t n = separator != NULL ? (size_t) (separator - text) : length;
	Network network;
	Address other;

	if (NetworkParse(text, n, &network) != NETWORK_OK)
		return;
	if (network.bits > 128 || !NetworkHolds(&network, &network.address))
		Fail("a network does not hold its own address");
	if (separator == NULL || !AddressParse(separator + 1, length - n - 1, &other))
		return;
	if (NetworkHolds(&network, &other))
	{
		unsigned i;

		if (AddressIsV4(&other) != (AddressIsV4(&network.address) && network.bits >= 96))
			Fail("a network holds an address of another kind");
		for (i = 0; i < network.bits; i++)
			if (((network.address.bytes[i / 8] ^ other.bytes[i / 8]) & (0x80 >> i % 8)) != 0)
				Fail("a network holds an address that differs from it");
	}
}

static void
CheckUtf8(const char *text, size_t length)
{
	static iconv_t converter;
	static char out[1024 * 1024];
	char *from = (char *) text;
	char *to = out;
	size_t left = length;
	size_t room = sizeof(out);

	if (converter == NULL)
		converter = iconv_open("UTF-32LE", "UTF-8");
	iconv(converter, NULL, NULL, NULL, NULL);
	if (length * 4 > sizeof(out))
		return;
	if (Utf8IsValid(text, length) !=
		(iconv(converter, &from, &left, &to, &room) != (size_t) -1 && left == 0))
		Fail("iconv says something else of UTF-8");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text;
	size_t length;
	char *second;

	if (size < 1)
		return 0;
	length = size - 1;
	text = malloc(length + 1);
	memcpy(text, data + 1, length);
	text[length] = '\0';
	switch (data[0] % 5)
	{
		case 0:
			CheckAddress(text, length);
			break;
		case 1:
			CheckNetwork(text, length);
			break;
		case 2:
			second = memchr(text, '\n', length);
			if (second != NULL)
			{
				*second++ = '\0';
				(void) HttpEtagMatches(text, second);
				(void) HttpHeaderContains(text, second, (data[0] & 0x80) != 0);
			}
			break;
		case 3:
		{
			/* Of exactly that length: nothing behind it may be read. */
			char *exact = malloc(length > 0 ? length : 1);

			memcpy(exact, text, length);
			CheckUtf8(exact, length);
			free(exact);
		}
		break;
		case 4:
		{
			Buffer out = {NULL, 0, 0};
			size_t i;

			BufferAppendJson(&out, text);
			for (i = 0; i < out.length; i++)
				if (out.data[i] < 0x20 || out.data[i] > 0x7e)
					Fail("a JSON string is not plain");
			BufferReset(&out, 0);
		}
		break;
	}
	free(text);
	return 0;
}

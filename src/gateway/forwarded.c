/*-------------------------------------------------------------------------
 *
 * forwarded.c
 *		The client's address, as a trusted proxy tells it.
 *
 * Anybody can write a header; only those of changefeed.trusted_proxies are read,
 * and only the one of changefeed.forwarded_header, because a proxy that keeps
 * one of them right may pass the other on as the client wrote it.
 *
 * Each proxy appends who it was called by.  Read from the right, the first
 * address that is not a trusted proxy's is the client's; what stands to its left
 * is that client's own invention.
 *
 * X-Forwarded-For may come in several lines, which lws joins.  Of Forwarded it
 * only gives the first: a proxy that sends it has to replace the client's.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>
#include <strings.h>

#include "visitor.h"

static const char forwarded[] = "forwarded:";

bool
NetworksHold(const NetworkList *list, const Address *address)
{
	uint32_t i;

	for (i = 0; i < list->n; i++)
	{
		if (NetworkHolds(&list->networks[i], address))
			return true;
	}
	return false;
}

static void
Trim(const char **text, size_t *length)
{
	while (*length > 0 && (**text == ' ' || **text == '\t'))
	{
		(*text)++;
		(*length)--;
	}
	while (*length > 0 && ((*text)[*length - 1] == ' ' || (*text)[*length - 1] == '\t'))
		(*length)--;
}

/* address, address:port, [address] or [address]:port */
static bool
ParseNode(const char *text, size_t length, Address *address)
{
	const char *end;
	const char *colon;

	if (length > 0 && text[0] == '[')
	{
		end = memchr(text, ']', length);
		if (end == NULL || (end + 1 != text + length && end[1] != ':'))
			return false;
		return AddressParse(text + 1, (size_t) (end - text) - 1, address);
	}
	colon = memchr(text, ':', length);
	if (colon != NULL && memchr(colon + 1, ':', (size_t) (text + length - colon) - 1) == NULL)
		length = (size_t) (colon - text);
	return AddressParse(text, length, address);
}

/* Finds "for=" in an element of Forwarded: pairs between semicolons. */
static bool
FindFor(const char **text, size_t *length)
{
	const char *p = *text;
	size_t left = *length;

	while (left > 0)
	{
		const char *end = memchr(p, ';', left);
		const char *pair = p;
		size_t n = end != NULL ? (size_t) (end - p) : left;
		size_t skip = end != NULL ? n + 1 : n;

		p += skip;
		left -= skip;
		Trim(&pair, &n);
		if (n < 4 || strncasecmp(pair, "for=", 4) != 0)
			continue;
		pair += 4;
		n -= 4;
		if (n >= 2 && pair[0] == '"' && pair[n - 1] == '"')
		{
			pair++;
			n -= 2;
		}
		*text = pair;
		*length = n;
		return true;
	}
	return false;
}

/* What RFC 7239 has for those who do not say: "unknown" or "_something". */
static bool
IsHidden(const char *text, size_t length)
{
	return (length == 7 && strncasecmp(text, "unknown", 7) == 0) || (length > 1 && text[0] == '_');
}

/* The last element in front of *length, which is cut off with its comma. */
static void
TakeLast(const char *header, size_t *length, const char **element, size_t *n)
{
	size_t start = *length;

	while (start > 0 && header[start - 1] != ',')
		start--;
	*element = header + start;
	*n = *length - start;
	*length = start > 0 ? start - 1 : 0;
	Trim(element, n);
}

/* Reads http_header. */
static ForwardedResult
Walk(bool pairs, Address *address)
{
	size_t length = strlen(http_header);
	ForwardedResult result = FORWARDED_NONE;

	while (length > 0)
	{
		const char *element;
		size_t n;
		Address found;

		TakeLast(http_header, &length, &element, &n);
		if (n == 0)
			continue;
		if ((pairs && !FindFor(&element, &n)) || IsHidden(element, n))
			return result;
		if (!ParseNode(element, n, &found))
			return FORWARDED_MALFORMED;
		*address = found;
		result = FORWARDED_FOUND;
		if (!NetworksHold(&gateway.trusted_proxies, &found))
			return result;
	}
	return result;
}

ForwardedResult
ForwardedAddress(struct lws *wsi, Address *address)
{
	if (!gateway.forwarded_header)
	{
		if (lws_hdr_total_length(wsi, WSI_TOKEN_X_FORWARDED_FOR) <= 0)
			return FORWARDED_NONE;
		return HttpHeader(wsi, WSI_TOKEN_X_FORWARDED_FOR) ? Walk(false, address)
														  : FORWARDED_MALFORMED;
	}
	if (lws_hdr_custom_length(wsi, forwarded, (int) strlen(forwarded)) <= 0)
		return FORWARDED_NONE;
	if (lws_hdr_custom_copy(wsi, http_header, sizeof(http_header), forwarded,
							(int) strlen(forwarded)) <= 0)
		return FORWARDED_MALFORMED;
	return Walk(true, address);
}

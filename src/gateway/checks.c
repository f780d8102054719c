/*-------------------------------------------------------------------------
 *
 * checks.c
 *		Who may send requests and open WebSockets, by their headers.
 *
 * Two checks protect the user of a browser from other pages in it: the Host
 * header (against DNS rebinding: a foreign name that resolves to this machine)
 * and the Origin header (against foreign pages that open a socket here).
 *
 * Process: gateway.  Memory: header values are copied into one buffer, which
 * the next one overwrites; lws' own header block is gone after the request.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "http.h"

/* lws copies offered extensions that are longer over the beginning of its answer. */
#define EXTENSIONS_MAX 255

/* Filled and used within one request. */
char http_header[HTTP_MAX_HEADER + 1];
char http_message[HTTP_MAX_HEADER + 256];

/* Copies a header; false if it is absent.  One that is too long is absent. */
bool
HttpHeader(struct lws *wsi, enum lws_token_indexes token)
{
	if (lws_hdr_total_length(wsi, token) <= 0)
		return false;
	return lws_hdr_copy(wsi, http_header, (int) sizeof(http_header), token) > 0;
}

static bool
IsListed(const StringList *list, const char *text, size_t length, bool *any)
{
	uint32_t i;

	*any = false;
	for (i = 0; i < list->n; i++)
	{
		const char *entry = list->strings[i];

		if (strlen(entry) == length && strncasecmp(entry, text, length) == 0)
		{
			*any = false;
			return true;
		}
		if (strcmp(entry, "*") == 0)
			*any = true;
	}
	return *any;
}

/* An address, which no foreign page's name can be made to point to. */
static bool
IsAddress(const char *text, size_t length)
{
	char copy[INET6_ADDRSTRLEN];
	unsigned char address[16];
	bool v6 = length > 2 && text[0] == '[';

	if (v6)
	{
		text++;
		length -= 2;
	}
	if (length >= sizeof(copy))
		return false;
	memcpy(copy, text, length);
	copy[length] = '\0';
	return inet_pton(v6 ? AF_INET6 : AF_INET, copy, address) == 1;
}

/* The Host header must name us by a name that was meant for us. */
bool
HttpHostIsAllowed(struct lws *wsi, Refusal *refusal)
{
	const char *end;
	size_t length;
	bool any;

	refusal->status = 403;
	refusal->code = "forbidden_host";
	if (!HttpHeader(wsi, WSI_TOKEN_HOST))
	{
		refusal->status = 400;
		refusal->code = "bad_request";
		refusal->message = "the request has no usable Host header";
		return false;
	}
	if (http_header[0] == '[' && (end = strchr(http_header, ']')) != NULL)
		end++;
	else if ((end = strchr(http_header, ':')) == NULL)
		end = http_header + strlen(http_header);
	length = (size_t) (end - http_header);

	if ((length == 9 && strncasecmp(http_header, "localhost", 9) == 0) ||
		IsAddress(http_header, length) ||
		IsListed(&gateway.allowed_hosts, http_header, length, &any))
		return true;

	snprintf(http_message, sizeof(http_message), "host \"%.*s\" is not allowed",
			 (int) (length < 200 ? length : 200), http_header);
	refusal->message = http_message;
	refusal->hint = "Add the name to the setting changefeed.allowed_hosts.";
	return false;
}

/*
 * The host and port of an origin that may be our own; NULL: it is none.  Anybody on
 * the way can put words into a page that came without TLS.
 */
static const char *
Authority(const char *origin, bool tls)
{
	if (strncasecmp(origin, "https://", 8) == 0)
		return origin + 8;
	return !tls && strncasecmp(origin, "http://", 7) == 0 ? origin + 7 : NULL;
}

/*
 * Browsers say which page sends a request.  Its own page, and those listed,
 * may; programs that are no browsers send no Origin.  http_header has the
 * origin afterwards, if there is one.
 */
HttpOrigin
HttpCheckOrigin(struct lws *wsi, Refusal *refusal)
{
	static char host[HTTP_MAX_HEADER + 1];
	const char *authority;
	bool any;

	if (lws_hdr_total_length(wsi, WSI_TOKEN_ORIGIN) <= 0)
		return ORIGIN_NONE;
	host[0] = '\0';
	if (HttpHeader(wsi, WSI_TOKEN_HOST))
		memcpy(host, http_header, strlen(http_header) + 1);
	if (HttpHeader(wsi, WSI_TOKEN_ORIGIN))
	{
		authority = Authority(http_header, lws_is_ssl(wsi));
		if (authority != NULL && strcasecmp(authority, host) == 0)
			return ORIGIN_OWN;
		if (IsListed(&gateway.allowed_origins, http_header, strlen(http_header), &any))
			return any ? ORIGIN_ANY : ORIGIN_LISTED;
	}
	else
		http_header[0] = '\0';
	snprintf(http_message, sizeof(http_message), "origin \"%.200s\" is not allowed", http_header);
	refusal->status = 403;
	refusal->code = "forbidden_origin";
	refusal->message = http_message;
	refusal->hint = "Add the origin to the setting changefeed.allowed_origins.";
	return ORIGIN_FOREIGN;
}

/*
 * The header lines that let a page of another origin read the answer.  Cookies
 * count only for origins that are listed by name: "*" would hand every page
 * what its visitor may see.
 */
void
HttpAppendCors(struct lws *wsi, HttpOrigin origin, Buffer *out)
{
	if ((origin == ORIGIN_LISTED || origin == ORIGIN_OWN) && HttpHeader(wsi, WSI_TOKEN_ORIGIN))
	{
		BufferAppendString(out, "Access-Control-Allow-Origin: ");
		BufferAppendString(out, http_header);
		BufferAppendString(out, "\r\nAccess-Control-Allow-Credentials: true\r\n");
	}
	else if (origin == ORIGIN_ANY)
		BufferAppendString(out, "Access-Control-Allow-Origin: *\r\n");
	else
		return;
	BufferAppendString(out, "Access-Control-Expose-Headers: ETag, Retry-After, "
							"Changefeed-Position\r\n");
}

/* Does a comma-separated header contain the token? */
bool
HttpHeaderContains(const char *text, const char *token, bool ignore_case)
{
	size_t length = strlen(token);

	while (*text != '\0')
	{
		size_t n;
		size_t trimmed;

		text += strspn(text, " \t,");
		n = strcspn(text, ",");
		for (trimmed = n; trimmed > 0 && isspace((unsigned char) text[trimmed - 1]);)
			trimmed--;
		if (trimmed == length &&
			(ignore_case ? strncasecmp(text, token, length) : strncmp(text, token, length)) == 0)
			return true;
		text += n;
	}
	return false;
}

/* What lws would refuse by merely dropping the connection. */
bool
HttpHandshakeIsUsable(struct lws *wsi, Refusal *refusal)
{
	refusal->status = 400;
	refusal->code = "bad_request";
	refusal->hint = NULL;

	if (lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) <= 0 || !HttpHeader(wsi, WSI_TOKEN_UPGRADE) ||
		strcasecmp(http_header, "websocket") != 0 ||
		lws_hdr_total_length(wsi, WSI_TOKEN_CONNECTION) > 120 ||
		!HttpHeader(wsi, WSI_TOKEN_CONNECTION) ||
		!HttpHeaderContains(http_header, "upgrade", true) ||
		lws_hdr_total_length(wsi, WSI_TOKEN_KEY) <= 0 ||
		lws_hdr_total_length(wsi, WSI_TOKEN_KEY) > 100)
	{
		refusal->message = "this is not a WebSocket handshake";
		return false;
	}
	if (!HttpHeader(wsi, WSI_TOKEN_VERSION) || strcmp(http_header, "13") != 0)
	{
		refusal->status = 426;
		refusal->code = "upgrade_required";
		refusal->message = "only version 13 of the WebSocket protocol is spoken";
		refusal->extra = "Sec-WebSocket-Version: 13\r\n";
		return false;
	}
	if (lws_hdr_total_length(wsi, WSI_TOKEN_PROTOCOL) > 0 &&
		(lws_hdr_total_length(wsi, WSI_TOKEN_PROTOCOL) > 120 ||
		 !HttpHeader(wsi, WSI_TOKEN_PROTOCOL) ||
		 !HttpHeaderContains(http_header, GATEWAY_SUBPROTOCOL, false)))
	{
		refusal->message = "none of the offered subprotocols is spoken";
		refusal->hint = "Offer \"" GATEWAY_SUBPROTOCOL "\" or none.";
		return false;
	}

	if (lws_hdr_total_length(wsi, WSI_TOKEN_EXTENSIONS) >= EXTENSIONS_MAX)
	{
		refusal->message = "the offered extensions are too long";
		refusal->hint = "Offer permessage-deflate or none.";
		return false;
	}
	return true;
}

/* ---- tokens ---- */

/* The value of the cookie, moved to the beginning of http_header. */
static bool
Cookie(struct lws *wsi, const char *name)
{
	size_t length = strlen(name);
	const char *p;

	if (length == 0 || !HttpHeader(wsi, WSI_TOKEN_HTTP_COOKIE))
		return false;
	for (p = http_header; *p != '\0'; p += strcspn(p, ";"))
	{
		p += strspn(p, "; \t");
		if (strncmp(p, name, length) == 0 && p[length] == '=')
		{
			size_t n;

			p += length + 1;
			n = strcspn(p, "; \t");
			if (n >= 2 && p[0] == '"' && p[n - 1] == '"')
			{
				p++;
				n -= 2;
			}
			memmove(http_header, p, n);
			http_header[n] = '\0';
			return n > 0;
		}
	}
	return false;
}

/*
 * The token of a request: from "Authorization: Bearer", else from ?token=,
 * else from the cookie.  The caller wipes it when it has been handed on.
 */
char *
HttpToken(struct lws *wsi, size_t *length, bool *is_cookie)
{
	static const char bearer[] = "Bearer ";
	const char *token = "";

	*is_cookie = false;
	http_header[0] = '\0';
	if (HttpHeader(wsi, WSI_TOKEN_HTTP_AUTHORIZATION) &&
		strncasecmp(http_header, bearer, sizeof(bearer) - 1) == 0)
	{
		token = http_header + sizeof(bearer) - 1;
		token += strspn(token, " ");
	}
	else
	{
		/* lws has decoded the %xx already. */
		token = lws_get_urlarg_by_name(wsi, "token=", http_header, (int) sizeof(http_header));
		if (token == NULL || *token == '\0')
		{
			*is_cookie = Cookie(wsi, gateway.token_cookie);
			token = *is_cookie ? http_header : "";
		}
	}
	*length = strlen(token);
	memmove(http_header, token, *length + 1);
	return http_header;
}

/*
 * A cookie comes along with whatever page makes the browser send the request.
 * So with nothing else to show, the page has to be one that is trusted by name;
 * one that may come because everybody may is not.
 */
bool
HttpCookieIsSafe(struct lws *wsi, HttpOrigin origin, Refusal *refusal)
{
	static const char name[] = "sec-fetch-site:";
	bool is_cookie;
	size_t length;
	char *token = HttpToken(wsi, &length, &is_cookie);
	const char *site = http_header;

	explicit_bzero(token, length);
	if (!is_cookie || origin == ORIGIN_OWN || origin == ORIGIN_LISTED)
		return true;

	/* Without an Origin browsers may still say whose page it was. */
	if (lws_hdr_custom_length(wsi, name, sizeof(name) - 1) <= 0 ||
		lws_hdr_custom_copy(wsi, http_header, sizeof(http_header), name, sizeof(name) - 1) <= 0)
		http_header[0] = '\0';
	site += strspn(site, " \t");
	if (origin == ORIGIN_NONE &&
		(*site == '\0' || strcmp(site, "same-origin") == 0 || strcmp(site, "none") == 0))
		return true;
	refusal->status = 403;
	refusal->code = "forbidden_origin";
	refusal->message = "a cookie is not accepted from pages of other origins";
	refusal->hint = "Name the origin in changefeed.allowed_origins, or send the token in the "
					"header Authorization.";
	return false;
}

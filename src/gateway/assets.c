/*-------------------------------------------------------------------------
 *
 * assets.c
 *		Static files: they come over the link with their ETag and are kept in
 *		memory.
 *
 * Process: gateway.  Memory: assets live until they are replaced.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http.h"

typedef struct Asset
{
	struct Asset *next;
	size_t path_length;
	char *path;
	char *content_type;
	char *etag;
	size_t length;
	char *body;
} Asset;

static Asset *assets;

/* ---- assets ---- */

static char *
CopyBytes(WireBytes bytes)
{
	char *copy = GatewayAlloc(bytes.length + 1);

	memcpy(copy, bytes.data, bytes.length);
	copy[bytes.length] = '\0';
	return copy;
}

static Asset *
FindAsset(const char *path, size_t length)
{
	Asset *asset;

	for (asset = assets; asset != NULL; asset = asset->next)
	{
		if (asset->path_length == length && memcmp(asset->path, path, length) == 0)
			return asset;
	}
	return NULL;
}

/* LINK_ASSET */
void
HttpSetAsset(WireReader *r)
{
	WireBytes path = WireGetBytes(r);
	WireBytes type = WireGetBytes(r);
	WireBytes etag = WireGetBytes(r);
	WireBytes body;
	Asset *asset;

	body.length = r->length - r->offset;
	body.data = WireTake(r, body.length);
	if (r->failed)
		return;

	asset = FindAsset(path.data, path.length);
	if (asset == NULL)
	{
		asset = GatewayAllocZero(sizeof(Asset));
		asset->next = assets;
		assets = asset;
	}
	free(asset->path);
	free(asset->content_type);
	free(asset->etag);
	free(asset->body);
	asset->path = CopyBytes(path);
	asset->path_length = path.length;
	asset->content_type = CopyBytes(type);
	asset->etag = CopyBytes(etag);
	asset->body = CopyBytes(body);
	asset->length = body.length;
}

/* Is one of the ETags of If-None-Match ours?  Weak comparison, as for GET. */
bool
HttpEtagMatches(const char *list, const char *etag)
{
	const char *p;
	size_t length = strlen(etag);

	for (p = list; length > 0 && *p != '\0';)
	{
		size_t n;

		p += strspn(p, " \t,");
		if (*p == '*')
			return true;
		if (strncmp(p, "W/", 2) == 0)
			p += 2;
		if (strncmp(p, etag, length) == 0 && strchr(", \t", p[length]) != NULL)
			return true;
		n = *p == '"' ? strcspn(p + 1, "\"") + 1 : 0;
		p += n;
		p += strcspn(p, ",");
	}
	return false;
}

static int
SendAsset(struct lws *wsi, const Asset *asset, bool head)
{
	Reply reply;
	char extra[160];

	memset(&reply, 0, sizeof(reply));
	reply.head = head;
	reply.page = true;
	if (strlen(asset->etag) > 0)
	{
		snprintf(extra, sizeof(extra), "ETag: %.140s\r\n", asset->etag);
		reply.extra = extra;
	}
	if (HttpHeader(wsi, WSI_TOKEN_HTTP_IF_NONE_MATCH) && HttpEtagMatches(http_header, asset->etag))
	{
		reply.status = 304;
		return HttpSend(wsi, &reply);
	}
	reply.status = 200;
	reply.content_type = asset->content_type;
	reply.body = asset->body;
	reply.length = asset->length;
	return HttpSend(wsi, &reply);
}


bool
HttpIsAsset(const char *path, size_t length)
{
	return FindAsset(path, length) != NULL;
}

int
HttpServeAsset(struct lws *wsi, const char *path, size_t length, bool head)
{
	return SendAsset(wsi, FindAsset(path, length), head);
}

/*-------------------------------------------------------------------------
 *
 * compress.c
 *		permessage-deflate (RFC 7692) without context takeover.
 *
 * A deflate stream may be put together from pieces that were compressed each by
 * itself, if each begins with an empty window and ends at a whole byte.  So a
 * fragment is compressed once for its whole audience; the head of a frame and
 * the commas, which differ, go between the pieces as stored blocks.  A piece is
 * kept without the length of the empty stored block at its end: that block then
 * takes what comes next, or stays cut off, as the end of a message has to be.
 *
 * What does not get smaller is sent as it is; both kinds may be mixed.
 *
 * lws negotiates with an extension of ours that does nothing else: its own would
 * keep a compressor for each connection.  What clients send is collected as it
 * came and inflated at once, so that one inflater serves all of them; it stops
 * at changefeed.max_message, however much more there would be.
 *
 * Process: gateway.  Memory: one compressor (270 kB), one inflater (40 kB), made
 * when they are first needed.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>

#include "gateway.h"

#define EXTENSION_NAME "permessage-deflate"

/* Window of RFC 7692's default, without zlib's own header and trailer. */
#define WINDOW_BITS (-15)

/* Level 6 costs three times as much for a twentieth less of JSON. */
#define LEVEL 1

/* Shorter texts do not get smaller, or not by much. */
#define LEAST_PIECE ((size_t) 128)

/* The longest stored block. */
#define STORED_MAX ((size_t) 65535)

/* Of what a message may inflate to if there is no other limit. */
#define INFLATE_MAX ((size_t) 64 * 1024 * 1024)

#define KEEP_BYTES ((size_t) 512 * 1024)

static const unsigned char block_end[4] = {0x00, 0x00, 0xff, 0xff};

/* ---- negotiation ---- */

/* The connection whose handshake is being answered with the extension. */
static struct lws *negotiated;

static int
OnExtension(struct lws_context *context, const struct lws_extension *extension, struct lws *wsi,
			enum lws_extension_callback_reasons reason, void *user, void *in, size_t length)
{
	/* Parameters are ours to look at: lws knows of none. */
	static const struct lws_ext_options none[] = {{NULL, EXTARG_NONE}};

	(void) context;
	(void) extension;
	(void) user;
	(void) length;
	if (reason == LWS_EXT_CB_CONSTRUCT)
	{
		*(const struct lws_ext_options **) in = none;
		negotiated = wsi;
	}
	return 0;
}

const struct lws_extension compress_extensions[] = {{EXTENSION_NAME, OnExtension, EXTENSION_NAME},
													{NULL, NULL, NULL}};

/* Before each handshake. */
void
CompressForget(void)
{
	negotiated = NULL;
}

bool
CompressIsNegotiated(struct lws *wsi)
{
	return negotiated == wsi;
}

/* Takes the text up to a separator, without blanks around it. */
static bool
NextToken(const char **text, const char *separators, char *token, size_t size)
{
	size_t n;

	*text += strspn(*text, " \t");
	n = strcspn(*text, separators);
	if (n >= size)
		return false;
	memcpy(token, *text, n);
	*text += n;
	while (n > 0 && (token[n - 1] == ' ' || token[n - 1] == '\t'))
		n--;
	token[n] = '\0';
	return true;
}

/*
 * Is there exactly one offer of it, with parameters that we can keep to?  A
 * smaller window for what we send we cannot: pieces are compressed for
 * everybody.  Of several offers lws knows only the first, and drops the
 * connection at the second; then it is better not to compress.
 */
static bool
OfferIsUsable(const char *text)
{
	char token[128];
	int offers = 0;

	while (*text != '\0')
	{
		bool ours;

		if (!NextToken(&text, ",;", token, sizeof(token)))
			return false;
		ours = strcmp(token, EXTENSION_NAME) == 0;
		offers += ours ? 1 : 0;
		while (*text == ';')
		{
			text++;
			if (!NextToken(&text, ",;", token, sizeof(token)))
				return false;
			if (ours && strcmp(token, "server_no_context_takeover") != 0 &&
				strcmp(token, "client_no_context_takeover") != 0 &&
				strcmp(token, "client_max_window_bits") != 0 &&
				strncmp(token, "client_max_window_bits=", 23) != 0)
				return false;
		}
		if (*text == ',')
			text++;
	}
	return offers == 1;
}

/* lws' CONFIRM_EXTENSION_OKAY. */
bool
CompressIsWanted(struct lws *wsi)
{
	char offer[256];

	return gateway.compression &&
		   lws_hdr_copy(wsi, offer, (int) sizeof(offer), WSI_TOKEN_EXTENSIONS) > 0 &&
		   OfferIsUsable(offer);
}

/*
 * lws' ADD_HEADERS: lws has just named the extension, without parameters.  They
 * go to the end of that line.  False: the handshake must not go on.
 */
bool
CompressAnswer(struct lws *wsi, struct lws_process_html_args *args)
{
	static const char line[] = EXTENSION_NAME "\r\n";
	static const char more[] = "; server_no_context_takeover; client_no_context_takeover\r\n";
	size_t n = sizeof(line) - 1;

	if (negotiated == NULL || negotiated != wsi)
		return true;
	if (memcmp(args->p - n, line, n) != 0 || args->max_len < (int) sizeof(more))
		return false;
	memcpy(args->p - 2, more, sizeof(more) - 1);
	args->p += sizeof(more) - 1 - 2;
	return true;
}

/* ---- sending ---- */

/*
 * Compresses a text as a piece and appends it.  False, and nothing appended, if
 * it would not get smaller.
 */
bool
CompressPiece(const char *data, size_t length, Buffer *out)
{
	static z_stream stream;
	static bool ready;
	size_t start = out->length;
	size_t room;

	if (length < LEAST_PIECE || length > UINT32_MAX / 2)
		return false;
	if (!ready &&
		deflateInit2(&stream, LEVEL, Z_DEFLATED, WINDOW_BITS, 8, Z_DEFAULT_STRATEGY) != Z_OK)
		GatewayFatal(EXIT_FAILED, "out of memory for compression");
	ready = true;
	deflateReset(&stream);

	/* If it does not fit there, it is not worth it. */
	room = length + sizeof(block_end);
	BufferReserve(out, room);
	stream.next_in = (unsigned char *) data;
	stream.avail_in = (unsigned int) length;
	stream.next_out = (unsigned char *) out->data + start;
	stream.avail_out = (unsigned int) room;
	if (deflate(&stream, Z_SYNC_FLUSH) != Z_OK || stream.avail_in > 0 || stream.avail_out == 0)
		return false;
	out->length = start + room - stream.avail_out - sizeof(block_end);
	return true;
}

/* The message that is being put together. */
static struct
{
	Buffer out;
	Buffer text; /* waits to become a stored block */
	bool open;	 /* out ends with a block whose length is missing */
} message;

static void
FlushText(void)
{
	size_t done = 0;

	while (done < message.text.length)
	{
		size_t n = message.text.length - done;
		unsigned char header[5];

		if (n > STORED_MAX)
			n = STORED_MAX;
		header[0] = 0; /* stored, not the last one */
		header[1] = (unsigned char) n;
		header[2] = (unsigned char) (n >> 8);
		header[3] = (unsigned char) ~n;
		header[4] = (unsigned char) (~n >> 8);
		BufferAppend(&message.out, header + (message.open ? 1 : 0), message.open ? 4 : 5);
		BufferAppend(&message.out, message.text.data + done, n);
		message.open = false;
		done += n;
	}
	BufferReset(&message.text, KEEP_BYTES);
}

void
CompressText(const void *data, size_t length)
{
	BufferAppend(&message.text, data, length);
}

/* What CompressPiece has made. */
void
CompressAppend(const char *piece, size_t length)
{
	FlushText();
	if (message.open)
		BufferAppend(&message.out, block_end, sizeof(block_end));
	BufferAppend(&message.out, piece, length);
	message.open = true;
}

/* Appends the message as a WebSocket frame. */
void
CompressFinish(Buffer *buffer)
{
	FlushText();
	if (!message.open)
		BufferAppend(&message.out, "", 1);
	message.open = false;
	BufferAppendFrameHeader(buffer, message.out.length, true);
	BufferAppend(buffer, message.out.data, message.out.length);
	BufferReset(&message.out, KEEP_BYTES);
}

/* Appends a whole text as a frame, compressed if that makes it smaller. */
void
CompressWhole(const char *data, size_t length, Buffer *buffer)
{
	if (CompressPiece(data, length, &message.out))
	{
		message.open = true;
		CompressFinish(buffer);
		return;
	}
	BufferAppendFrameHeader(buffer, length, false);
	BufferAppend(buffer, data, length);
}

/* ---- receiving ---- */

static Buffer inflated;

/* Inflates what there is in the stream; the rest of `limit` is what may come. */
static InflateResult
InflateSome(z_stream *stream, size_t limit)
{
	for (;;)
	{
		size_t room = limit + 1 - inflated.length;
		int result;

		if (room > 16384)
			room = 16384;
		BufferReserve(&inflated, room);
		stream->next_out = (unsigned char *) inflated.data + inflated.length;
		stream->avail_out = (unsigned int) room;
		result = inflate(stream, Z_SYNC_FLUSH);
		inflated.length += room - stream->avail_out;
		if (inflated.length > limit)
			return INFLATE_TOO_BIG;
		if (result == Z_STREAM_END)
		{
			/* A last block; what is behind it is another stream. */
			if (stream->avail_in == 0)
				return INFLATE_OK;
			inflateReset(stream);
		}
		else if (result == Z_BUF_ERROR || (result == Z_OK && stream->avail_out > 0))
			return stream->avail_in == 0 ? INFLATE_OK : INFLATE_DAMAGED;
		else if (result != Z_OK)
			return INFLATE_DAMAGED;
	}
}

/*
 * Inflates a client's message; *text is valid until the next one.  The bound is
 * one of memory and of work: nothing beyond it is looked at.
 */
InflateResult
CompressInflate(const char *data, size_t length, const char **text, size_t *text_length)
{
	static z_stream stream;
	static bool ready;
	size_t limit = gateway.max_message > 0 ? gateway.max_message : INFLATE_MAX;
	InflateResult result;

	if (!ready && inflateInit2(&stream, WINDOW_BITS) != Z_OK)
		GatewayFatal(EXIT_FAILED, "out of memory for compression");
	ready = true;
	inflateReset(&stream);
	BufferReset(&inflated, KEEP_BYTES);

	stream.next_in = (unsigned char *) data;
	stream.avail_in = (unsigned int) length;
	result = InflateSome(&stream, limit);
	if (result == INFLATE_OK)
	{
		stream.next_in = (unsigned char *) block_end;
		stream.avail_in = sizeof(block_end);
		result = InflateSome(&stream, limit);
	}
	*text = inflated.data;
	*text_length = inflated.length;
	return result;
}

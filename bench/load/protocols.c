/*-------------------------------------------------------------------------
 *
 * protocols.c
 *		What the systems under test speak over WebSocket.
 *
 * changefeed: this project's; one message is one transaction.
 * text: a message is a text; the channel is in the path, who is upgraded is
 * subscribed (nchan, the server for Node's ws, the bare loop).
 * nats: NATS' text protocol in binary frames.
 * mqtt: MQTT 3.1.1, QoS 0, in binary frames.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

/* ---- changefeed ---- */

static bool
Begins(const char *data, size_t length, const char *text)
{
	size_t n = strlen(text);

	return length >= n && memcmp(data, text, n) == 0;
}

static void
ChangefeedOpened(Conn *c)
{
	const Group *g = c->group;
	char message[4096];
	char channel[256];
	char from[96] = "";
	uint32_t i;
	int n;

	if (g->ntokens > 0)
		n = snprintf(message, sizeof(message), "{\"type\":\"connect\",\"id\":1,\"token\":\"%s\"}",
					 g->tokens[c->index % g->ntokens]);
	else
		n = snprintf(message, sizeof(message), "{\"type\":\"connect\",\"id\":1}");
	if (n >= (int) sizeof(message))
		Die("a token is too long");
	ConnSend(c, 1, message, (size_t) n);
	c->seq = 0;
	if (g->uses_positions && c->position[0] != '\0')
		snprintf(from, sizeof(from), ",\"from\":\"%s\"", c->position);
	for (i = 0; i < g->subscriptions; i++)
	{
		uint32_t number = g->subscriptions == 1
							  ? c->channel
							  : g->first + (c->index * g->subscriptions + i) % g->channels;

		n = snprintf(message, sizeof(message),
					 "{\"type\":\"subscribe\",\"id\":%u,\"channel\":\"%s\"%s%s}", i + 2,
					 Expand(g->channel, number, channel, sizeof(channel)), from,
					 g->snapshot ? "" : ",\"snapshot\":false");
		ConnSend(c, 1, message, (size_t) n);
	}
	if (g->subscriptions == 0)
		ConnReady(c);
}

static void
KeepPosition(Conn *c, const char *data, size_t length)
{
	static const char name[] = "\"position\":\"";
	const char *at = memmem(data, length, name, sizeof(name) - 1);
	const char *end;

	if (at == NULL)
		return;
	at += sizeof(name) - 1;
	end = memchr(at, '"', (size_t) (data + length - at));
	if (end == NULL || (size_t) (end - at) >= sizeof(c->position))
		return;
	memcpy(c->position, at, (size_t) (end - at));
	c->position[end - at] = '\0';
}

static size_t
ChangefeedTake(Conn *c, const char *data, size_t length)
{
	if (Begins(data, length, "{\"type\":\"transaction\",\"seq\":"))
	{
		uint64_t seq = strtoull(data + sizeof("{\"type\":\"transaction\",\"seq\":") - 1, NULL, 10);

		/* Parts of a large one have the same number. */
		if (seq != c->seq + 1 && seq != c->seq)
			Wrong("%s, connection %u: frame %llu came after frame %llu", c->group->name, c->index,
				  (unsigned long long) seq, (unsigned long long) c->seq);
		c->seq = seq;
		ConnTake(c, data, length);
	}
	else if (Begins(data, length, "{\"type\":\"snapshot\""))
	{
		c->group->snapshots++;
		c->group->snapshot_bytes += length;
		ConnLearn(c, data, length);
	}
	else if (Begins(data, length, "{\"type\":\"ready\""))
	{
		KeepPosition(c, data, length);
		ConnReady(c);
	}
	else if (Begins(data, length, "{\"type\":\"ping\""))
		ConnSend(c, 1, "{\"type\":\"pong\"}", 15);
	else if (Begins(data, length, "{\"type\":\"subscribed\""))
	{
		if (memmem(data, length, "\"recovered\":true", 16) != NULL)
			c->group->recovered++;
	}
	else if (Begins(data, length, "{\"type\":\"resync\""))
	{
		c->group->resyncs++;
		c->knows_n = false;
	}
	else if (Begins(data, length, "{\"type\":\"error\"") ||
			 Begins(data, length, "{\"type\":\"closing\"") ||
			 Begins(data, length, "{\"type\":\"revoked\""))
	{
		ConnFail(c, "%.*s", (int) length, data);
		return length;
	}
	if (c->group->keeps_positions)
		KeepPosition(c, data, length);
	return length;
}

const Protocol protocol_changefeed = {"changefeed",		NULL,		   "/v1/socket", false,
									  ChangefeedOpened, ChangefeedTake};

/* ---- text ---- */

static size_t
TextTake(Conn *c, const char *data, size_t length)
{
	ConnTake(c, data, length);
	return length;
}

const Protocol protocol_text = {"text", NULL, "/{i}", false, ConnReady, TextTake};

/* ---- nats ---- */

static void
NatsOpened(Conn *c)
{
	const Group *g = c->group;
	char message[512];
	char channel[256];
	uint32_t i;
	int n = snprintf(message, sizeof(message),
					 "CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\n");

	ConnSend(c, 2, message, (size_t) n);
	for (i = 0; i < g->subscriptions; i++)
	{
		n = snprintf(message, sizeof(message), "SUB %s %u\r\n",
					 Expand(g->channel, g->first + (c->index * g->subscriptions + i) % g->channels,
							channel, sizeof(channel)),
					 i + 1);
		ConnSend(c, 2, message, (size_t) n);
	}
	ConnSend(c, 2, "PING\r\n", 6);
}

static size_t
NatsTake(Conn *c, const char *data, size_t length)
{
	size_t done = 0;

	for (;;)
	{
		const char *line = data + done;
		const char *end = memmem(line, length - done, "\r\n", 2);
		size_t used;

		if (end == NULL)
			return done;
		used = (size_t) (end - line) + 2;
		if (Begins(line, used, "MSG "))
		{
			const char *digits = end;
			size_t size;

			while (digits[-1] >= '0' && digits[-1] <= '9')
				digits--;
			size = strtoul(digits, NULL, 10);
			if (length - done < used + size + 2)
				return done;
			ConnTake(c, end + 2, size);
			used += size + 2;
		}
		else if (Begins(line, used, "PING"))
			ConnSend(c, 2, "PONG\r\n", 6);
		else if (Begins(line, used, "PONG"))
		{
			uint32_t i;

			for (i = 0; i < c->group->subscriptions || i == 0; i++)
				ConnReady(c);
		}
		else if (Begins(line, used, "-ERR"))
		{
			ConnFail(c, "%.*s", (int) used - 2, line);
			return length;
		}
		done += used;
	}
}

const Protocol protocol_nats = {"nats", NULL, "/", true, NatsOpened, NatsTake};

/* ---- mqtt ---- */

size_t
MqttString(char *out, const char *text)
{
	size_t n = strlen(text);

	out[0] = (char) (n >> 8);
	out[1] = (char) n;
	memcpy(out + 2, text, n);
	return n + 2;
}

size_t
MqttLength(char *out, size_t length)
{
	size_t n = 0;

	do
	{
		out[n] = (char) (length & 0x7f);
		length >>= 7;
		if (length > 0)
			out[n] |= (char) 0x80;
		n++;
	} while (length > 0);
	return n;
}

static void
MqttOpened(Conn *c)
{
	/* Clean session, no keep-alive, and a client ID of the server's choice */
	ConnSend(c, 2, "\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", 14);
}

static void
MqttSubscribe(Conn *c)
{
	const Group *g = c->group;
	uint32_t i;

	for (i = 0; i < g->subscriptions; i++)
	{
		char channel[256];
		char body[300];
		char packet[310];
		size_t n = 0;
		size_t head = 1;

		body[n++] = (char) ((i + 1) >> 8);
		body[n++] = (char) (i + 1);
		n += MqttString(body + n, Expand(g->channel,
										 g->first + (c->index * g->subscriptions + i) % g->channels,
										 channel, sizeof(channel)));
		body[n++] = 0;
		packet[0] = (char) 0x82;
		head += MqttLength(packet + 1, n);
		memcpy(packet + head, body, n);
		ConnSend(c, 2, packet, head + n);
	}
	if (g->subscriptions == 0)
		ConnReady(c);
}

static size_t
MqttTake(Conn *c, const char *data, size_t length)
{
	size_t done = 0;

	for (;;)
	{
		const unsigned char *p = (const unsigned char *) data + done;
		size_t left = length - done;
		size_t size = 0;
		size_t head = 1;

		do
		{
			if (head >= left)
				return done;
			size |= (size_t) (p[head] & 0x7f) << (7 * (head - 1));
		} while ((p[head++] & 0x80) != 0 && head < 5);
		if (left < head + size)
			return done;
		switch (p[0] >> 4)
		{
			case 2: /* CONNACK */
				if (size < 2 || p[head + 1] != 0)
				{
					ConnFail(c, "MQTT CONNACK %d", size < 2 ? -1 : p[head + 1]);
					return length;
				}
				MqttSubscribe(c);
				break;
			case 3: /* PUBLISH, QoS 0 */
			{
				size_t topic = ((size_t) p[head] << 8 | p[head + 1]) + 2;

				ConnTake(c, (const char *) p + head + topic, size - topic);
				break;
			}
			case 9: /* SUBACK */
				ConnReady(c);
				break;
		}
		done += head + size;
	}
}

const Protocol protocol_mqtt = {"mqtt", "mqtt", "/mqtt", true, MqttOpened, MqttTake};

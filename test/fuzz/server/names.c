/*-------------------------------------------------------------------------
 *
 * names.c
 *		Names of channels (src/template.c) and positions (src/position.c).
 *
 * Input: a byte that says what it is; a position, or a template and a name with
 * a line end between them.
 *
 * Properties: values that a name gives give a name again, which gives the same
 * values; a name that two templates could both produce is one for which they are
 * said to overlap; a position that is accepted is written as it was read.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include "position.h"
#include "template.h"

#include "mb/pg_wchar.h"

static bool
SameValues(int n, char **a, char **b)
{
	int i;

	for (i = 0; i < n; i++)
		if ((a[i] == NULL) != (b[i] == NULL) || (a[i] != NULL && strcmp(a[i], b[i]) != 0))
			return false;
	return true;
}

static void
CheckName(const ChannelTemplate *template, const char *name, Size length)
{
	char *values[CHANNEL_PARAMS_MAX] = {0};
	char *again[CHANNEL_PARAMS_MAX] = {0};
	StringInfoData written;
	int i;

	if (!TemplateMatch(template, name, length, values))
	{
		if (TemplateMatch(template, name, length, NULL))
			Fail("whether a name matches depends on who asks");
		return;
	}
	for (i = 0; i < template->nparams; i++)
		if (values[i] != NULL && !pg_verifymbstr(values[i], (int) strlen(values[i]), true))
			Fail("a value is not UTF-8");
	initStringInfo(&written);
	TemplateFormat(&written, template, values);
	if (written.len > CHANNEL_NAME_MAX)
		return;
	if (!TemplateMatch(template, written.data, written.len, again) ||
		!SameValues(template->nparams, values, again))
		Fail("\"%s\" is not what was read", written.data);
}

static void
CheckPosition(const char *text, Size size)
{
	Position position;
	char written[POSITION_LENGTH + 1];

	if (!PositionParse(text, size, &position))
		return;
	PositionWrite(written, position.epoch, position.lsn, position.xid, (TimestampTz) position.time);
	memcpy(written + POSITION_COMMON, position.tag, POSITION_TAG);
	if (memcmp(written, text, POSITION_LENGTH) != 0)
		Fail("a position is written in another way");
}

static void
Run(const char *data, Size size)
{
	const char *first;
	const char *second;
	const char *end = data + size;
	ChannelTemplate *template;
	Size length;

	if (size < 2)
		return;
	if (data[0] == 'p')
	{
		CheckPosition(data + 1, size - 1);
		return;
	}
	first = data + 1;
	second = memchr(first, '\n', end - first);
	if (second == NULL || !pg_verify_mbstr(PG_UTF8, first, (int) (second - first), true))
		return;
	template = TemplateParse(pnstrdup(first, second - first));
	second++;
	length = end - second;

	/* A client's message is UTF-8 and has no zero byte. */
	if (!pg_verify_mbstr(PG_UTF8, second, (int) length, true) ||
		memchr(second, '\0', length) != NULL)
		return;
	CheckName(template, pnstrdup(second, length), length);
	if (data[0] == 't')
	{
		/* The second one is a template as well, and as a name of the first. */
		ChannelTemplate *other = TemplateParse(pnstrdup(second, length));
		bool overlap = TemplatesOverlap(template, other);

		if (overlap != TemplatesOverlap(other, template))
			Fail("one overlaps the other, but not the other way round");
		if (!TemplatesOverlap(template, template))
			Fail("a template does not overlap itself");
		if (other->nparams == 0 && overlap != TemplateMatch(template, other->literals[0],
															strlen(other->literals[0]), NULL))
			Fail("a fixed name overlaps a template to which it does not belong");
	}
}

const FuzzTarget target_names = {"names", NULL, Run, NULL};

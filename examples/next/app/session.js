import 'server-only';

// Who asks, and the token for them. An application makes it from its own session; here everybody is the same user.
export const token = async () => process.env.CHANGEFEED_TOKEN;

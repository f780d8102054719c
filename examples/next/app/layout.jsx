import { Providers } from './providers.jsx';

export const metadata = { title: 'Orders' };

export default function Layout({ children }) {
  return (
    <html lang="en">
      <body>
        <Providers url={process.env.CHANGEFEED_PUBLIC_URL}>{children}</Providers>
      </body>
    </html>
  );
}

// An OpenID Connect provider on a free port, by a certified implementation: `node oidc.mjs MODULES ADDRESS`. It gives access tokens (JWT, RFC
// 9068) for `urn:textnlp` and `urn:other` to two clients, with a tenant and roles. `POST /rotate` replaces its keys: it starts anew.
import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';

const { default: Provider } = await import(`${process.argv[2]}/oidc-provider/lib/index.js`);

const client = (name) => ({
  client_id: name, client_secret: `secret of ${name}`, grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
});
const claims = {
  writer: { tenant: 'acme', access: { roles: ['writers', 'others'] } },
  guest: { tenant: 'acme', access: { roles: [] } },
  lost: { tenant: 'No tenant', access: { roles: ['writers'] } },
};

let issuer;
function provider() {
  const keys = [['RS256', 'rsa', { modulusLength: 2048 }], ['ES256', 'ec', { namedCurve: 'P-256' }]].map(([alg, type, options]) => ({
    ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: randomUUID(),
  }));
  return new Provider(issuer, {
    clients: Object.keys(claims).map(client),
    jwks: { keys },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          scope: 'es256 short', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 600, jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
    extraTokenClaims: (_, token) => claims[token.clientId],
  }).callback();
}

let answer;
const server = createServer((request, response) => {
  if (request.method === 'POST' && request.url === '/rotate') {
    answer = provider();
    response.end();
  } else {
    answer(request, response);
  }
});
server.listen(0, process.argv[3], () => {
  issuer = `http://${process.argv[3]}:${server.address().port}`;
  answer = provider();
  console.log(`listening on ${issuer}`);
});

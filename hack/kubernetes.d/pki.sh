# shellcheck shell=bash
# Throw-away certificates and kubeconfigs of one instance: a CA, servers, clients.

PKI=$STATE/pki

pki_create_ca() {
    mkdir -p "$PKI"
    chmod 0700 "$STATE" "$PKI"
    pki_key ca
    openssl req -x509 -new -key "$PKI/ca.key" -days 3650 -subj "/CN=podrail lab $LAB" -out "$PKI/ca.crt" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
    pki_key service-account
    openssl pkey -in "$PKI/service-account.key" -pubout -out "$PKI/service-account.pub"
}

# Elliptic keys: 1.20 knows them, and they cost an emulated guest far less than RSA.
pki_key() { (umask 077 && openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/$1.key"); }

# pki_issue NAME SUBJECT USAGE [ALTERNATIVE-NAMES]
pki_issue() {
    local name=$1 subject=$2 usage=$3 names=${4:-}
    pki_key "$name"
    openssl req -new -key "$PKI/$name.key" -subj "$subject" |
        openssl x509 -req -days 3650 -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -out "$PKI/$name.crt" \
            -extfile <(
                printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\n' "$usage"
                [[ -z $names ]] || printf 'subjectAltName=%s\n' "$names"
            ) 2>/dev/null
}

# pki_kubeconfig CERTIFICATE SERVER FILE: all credentials inline, so that the file can be copied anywhere.
pki_kubeconfig() {
    local name=$1 server=$2 file=$3
    (
        umask 077
        cat >"$file.new" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: $server
    certificate-authority-data: $(base64 --wrap=0 "$PKI/ca.crt")
users:
- name: $name
  user:
    client-certificate-data: $(base64 --wrap=0 "$PKI/$name.crt")
    client-key-data: $(base64 --wrap=0 "$PKI/$name.key")
contexts:
- name: lab
  context:
    cluster: lab
    user: $name
current-context: lab
YAML
        mv "$file.new" "$file"
    )
}

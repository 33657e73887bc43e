using System.Globalization;
using System.Net;
using BlockServer.Core;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Blockd;

/// <summary>An address to listen at.</summary>
/// <param name="Tcp">Address and port, or null.</param>
/// <param name="UnixPath">Absolute path of a unix socket, or null.</param>
/// <param name="Group">Tag of the portal group, for iSCSI.</param>
internal sealed record ListenAddress(IPEndPoint? Tcp, string? UnixPath, ushort Group = 1)
{
    public bool IsLocal => Tcp is null || IPAddress.IsLoopback(Tcp.Address);

    public override string ToString() => Tcp is not null ? Tcp.ToString() : "unix:" + UnixPath;
}

/// <summary>A volume to create at start, if absent.</summary>
internal sealed record WantedVolume(string Name, ulong SizeBytes);

/// <summary>What the daemon was told, checked.</summary>
internal sealed record Settings
{
    public required string DataDir { get; init; }

    public required IReadOnlyList<ListenAddress> Nbd { get; init; }

    /// <summary>Nobody said where NBD is served.</summary>
    public required bool IsNbdDefault { get; init; }

    public required IReadOnlyList<ListenAddress> Iscsi { get; init; }

    /// <summary>Nobody said where iSCSI is served.</summary>
    public required bool IsIscsiDefault { get; init; }

    /// <summary>What stands in front of a volume's name in the name of its target.</summary>
    public required string IscsiPrefix { get; init; }

    /// <summary>File with the CHAP users, or null: everybody may log in.</summary>
    public required string? IscsiChap { get; init; }

    public required IReadOnlyList<ListenAddress> Api { get; init; }

    /// <summary>The API speaks HTTPS at loopback too.</summary>
    public required bool IsApiAlwaysTls { get; init; }

    /// <summary>Size of the first store file; null: half of the free disk, at most 64 GiB.</summary>
    public required ulong? StoreSizeBytes { get; init; }

    public required Durability Durability { get; init; }

    public required string Engine { get; init; }

    /// <summary>RAM for metadata pages, bytes, shared by all stores.</summary>
    public required ulong MetadataRamBytes { get; init; }

    /// <summary>Bytes a second that each store may write anew to lay scattered extents out in order; 0: never.</summary>
    public required ulong RelayoutBytesPerSecond { get; init; }

    /// <summary>Bytes a second that a volume on its way to another disk is copied with at most.</summary>
    public required ulong MoveBytesPerSecond { get; init; }

    /// <summary>A disk that takes no more changes is emptied onto the others by itself.</summary>
    public required bool DrainsFailed { get; init; }

    /// <summary>Every disk is read and verified once in this time; zero: only when somebody says so.</summary>
    public required TimeSpan ScrubPeriod { get; init; }

    /// <summary>Bytes a second that this reads at most.</summary>
    public required ulong ScrubBytesPerSecond { get; init; }

    public required int Loops { get; init; }

    /// <summary>How long a loop looks for the next request before it sleeps, in microseconds; 0: never.</summary>
    public required int BusyPollMicros { get; init; }

    /// <summary>How much behind the loops all other threads run, as a nice value; 0: beside them.</summary>
    public required int BackgroundNice { get; init; }

    public required string? TlsCert { get; init; }

    public required string? TlsKey { get; init; }

    public required string? TlsCa { get; init; }

    /// <summary>What clients must show.</summary>
    public required TlsClients TlsClients { get; init; }

    /// <summary>Whether NBD is encrypted on listeners that only this machine reaches; beyond it TLS is required unless
    /// <see cref="Insecure"/>.</summary>
    public required NbdTlsMode Tls { get; init; }

    /// <summary>Connections at once.</summary>
    public required int Connections { get; init; }

    /// <summary>Connections of one address at once.</summary>
    public required int ConnectionsPerAddress { get; init; }

    /// <summary>What they may take.</summary>
    public required ClientLimits Limits { get; init; }

    /// <summary>Seconds after which a stop gives up a disk that answers nothing.</summary>
    public required int StopWaitSeconds { get; init; }

    /// <summary>A disk with less than this part free runs low, percent; 0: never.</summary>
    public required int LowSpacePercent { get; init; }

    /// <summary>A disk with more than this part of its metadata slots in use runs low, percent.</summary>
    public required int MetadataWarnPercent { get; init; }

    /// <summary>Beyond this part of a disk, or of its metadata slots, nothing begins a new extent that was not promised room, percent.</summary>
    public required int WriteProtectPercent { get; init; }

    /// <summary>Volumes whose creation does not say are not promised room for their size.</summary>
    public required bool IsThinByDefault { get; init; }

    /// <summary>Bytes in flight at a disk that several volumes use at once; 0: as many as come.</summary>
    public required ulong DiskShareBytes { get; init; }

    public required bool Insecure { get; init; }

    public required IReadOnlyList<WantedVolume> CreateVolumes { get; init; }

    /// <summary>Serve this export to standard input and output, and nothing else.</summary>
    public required string? Stdio { get; init; }
}

/// <summary>A setting that cannot be. The message names it and says what is allowed.</summary>
internal sealed class SettingException : Exception
{
    /// <summary>Refuses <paramref name="value"/>.</summary>
    public SettingException(string name, string value, string allowed)
        : this($"{name}: '{value}' is not allowed; {allowed}", name)
    {
    }

    /// <summary>Refuses with a whole sentence.</summary>
    public SettingException(string message, string name)
        : base(message) => Name = name;

    /// <summary>Adds where the setting came from.</summary>
    public SettingException(SettingException inner, string origin)
        : this($"{inner.Message} (set in {origin})", inner.Name)
    {
    }

    /// <summary>The setting, as on the command line.</summary>
    public string Name { get; }
}

/// <summary>Makes <see cref="Settings"/> of raw texts: pure, for tests.</summary>
internal static class SettingsReader
{
    // The smallest redo ring and the metadata slots take 66 MiB; a store has data besides.
    private const ulong StoreBytesMin = 80 * Units.MiB;

    private const string AddressHelp = "write ADDRESS:PORT (for instance 127.0.0.1:10809 or [::1]:10809), unix:/PATH or none";

    private const string PortalHelp = "write ADDRESS:PORT or ADDRESS:PORT,GROUP (for instance 127.0.0.1:3260,2; groups are 1 to 63) or none";

    /// <summary>What an address beyond loopback needs.</summary>
    public const string BeyondHelp =
        "an address beyond loopback needs --tls-cert, --tls-key, --tls-ca and --tls-clients required, or --insecure";

    /// <summary>Every setting by its name without dashes, with what it is for; also the keys of the JSON file and, upper
    /// case with underscores behind BLOCKD_, of the environment.</summary>
    public static readonly IReadOnlyList<(string Name, string Value, bool IsMany, string Help)> All =
    [
        ("data-dir", "DIR", false, "Where everything is kept: stores, metadata, admin token. Default: $XDG_DATA_HOME/blockd or ~/.local/share/blockd."),
        ("nbd", "ADDRESS", true, "Where NBD is served: ADDRESS:PORT, unix:PATH or none; repeatable. Default: 127.0.0.1:10809 and unix:DIR/nbd.sock."),
        ("iscsi", "ADDRESS", true, "Where iSCSI is served: ADDRESS:PORT[,GROUP] or none; repeatable, every address is a portal of portal group GROUP, 1 to 63 (default 1). Default: 127.0.0.1:3260 if it is free."),
        ("iscsi-prefix", "IQN", false, "Name of the target of volume NAME is IQN:NAME. Default: iqn.2026-11.org.blockserver."),
        ("iscsi-chap", "FILE", false, "CHAP users of discovery and of targets that have none of their own: a line 'user NAME SECRET' each, and at most one 'mutual NAME SECRET' by which the target proves itself."),
        ("api", "ADDRESS", true, "Where the admin API is served: ADDRESS:PORT, unix:PATH or none; repeatable. Default: 127.0.0.1:49180."),
        ("api-tls", "MODE", false, "beyond (default): the admin API speaks HTTPS, by --tls-cert, at addresses beyond loopback. always: at every TCP address."),
        ("store-size", "SIZE", false, "Size of the first store file DIR/store-0.blk, for instance 20g. Default: half of the free disk, at most 64g."),
        ("durability", "MODE", false, "flush: like a disk with a cache, FLUSH and FUA make writes durable (default). ack: every write is durable when answered."),
        ("engine", "ENGINE", false, "How the disk is driven: auto (default: io_uring, else aio), io_uring or aio."),
        ("metadata-ram", "SIZE", false, "RAM for metadata pages. Default: an eighth of the RAM."),
        ("relayout", "MODE", false, "on (default): what was overwritten at random is laid out in order again while the disk has nothing else to do. off: never."),
        ("drain-failed", "MODE", false, "on (default): a disk that failed and can still be read is emptied onto the others by itself, so that its volumes can be written again. off: only when you say drain_disk."),
        ("scrub-period", "DAYS", false, "Every disk is read and its checksums are verified once in so many days. 0: only by scrub_disk and scrub_volume. Default: 14."),
        ("scrub-rate", "SIZE", false, "Most that this reads in a second. Default: 20m."),
        ("move-rate", "SIZE", false, "Most that a volume on its way to another disk is copied with in a second. Default: 1t, as fast as the disks allow."),
        ("relayout-rate", "SIZE", false, "Most that --relayout writes to a disk in a second. Default: 64m."),
        ("loops", "COUNT", false, "Threads that serve, 1 to 64. Default: 1. Stores are spread over them."),
        ("busy-poll", "MICROSECONDS", false, "How long a thread that serves looks for the next request before it sleeps, while requests come faster than that; 0 to 1000. Default: 50, and 0 unless there is a processor more than --loops. 0 saves processor time, a sleep costs a client that waits for each answer some latency. io_uring only."),
        ("background-nice", "NICE", false, "How much behind the threads that serve the others run (the admin API, exports, the runtime's compiler), as a nice value, 0 to 19. Default: 5. 0: beside them; then clients wait for them some milliseconds now and then where processors are short."),
        ("tls", "MODE", false, "off, optional or required: whether NBD clients use TLS. Default: off without --tls-cert, else optional, but required when an address is beyond loopback or --tls-clients is required. Beyond loopback optional means required unless --insecure."),
        ("tls-cert", "FILE", false, "Certificate (PEM) for NBD's STARTTLS and for HTTPS, with its intermediates behind it. Read again when the file changes."),
        ("tls-key", "FILE", false, "Private key (PEM, no passphrase) of --tls-cert."),
        ("tls-ca", "FILE", false, "Authorities (PEM) that sign client certificates."),
        ("tls-clients", "MODE", false, "Client certificates: none (default), optional or required."),
        ("insecure", "", false, "Permit addresses beyond loopback without TLS and client certificates, and targets without CHAP there. Everybody who reaches them can read and write the volumes."),
        ("connections", "COUNT", false, "Most connections of clients at once, NBD and iSCSI together, 1 to 65536. Default: 256."),
        ("connections-per-address", "COUNT", false, "Most of them from one address, 1 to 65536; unix sockets have no such limit. Default: 32."),
        ("connections-negotiating", "COUNT", false, "Most connections that have not negotiated or logged in yet, NBD and iSCSI together, 1 to 65536; the oldest gives way. Default: 64."),
        ("negotiation-wait", "SECONDS", false, "How long the negotiation of a connection or its login may take, 1 to 600. Default: 10."),
        ("stall-wait", "SECONDS", false, "A client that takes nothing of what is sent to it is closed after so long, 1 to 3600. Default: 60."),
        ("loop-memory", "SIZE", false, "I/O memory of each thread that serves, 64m to 64g; while none is free, sockets are not read. Default: 256m."),
        ("iscsi-sessions", "COUNT", false, "Most sessions of one iSCSI target, 1 to 4096. Default: 64."),
        ("iscsi-commands", "COUNT", false, "Commands that an iSCSI session may have in flight, 1 to 1024. Default: 128."),
        ("iscsi-window", "SIZE", false, "Data of those commands, 64k to 64m; one command may exceed it alone. Default: 16m."),
        ("iscsi-ping", "SECONDS", false, "Silence after which an iSCSI initiator is pinged, 1 to 3600. Default: 5."),
        ("iscsi-ping-wait", "SECONDS", false, "An iSCSI session whose initiator does not answer a ping for so long ends, 1 to 3600. Default: 90."),
        ("stop-wait", "SECONDS", false, "How long a stop waits for a disk that answers nothing, 1 to 3600; then blockd names it and ends with code 4. Default: 30."),
        ("disk-share", "SIZE|off", false, "While several volumes use a disk, so many bytes of theirs together are in flight there, in equal parts, 64k to 1g. Default: 256k."),
        ("low-space", "PERCENT", false, "A disk with less than this part free runs low: initiators and the log are told, 0 (never) to 50. Default: 10."),
        ("metadata-warn", "PERCENT", false, "A disk with more than this part of its metadata slots in use runs low, 1 to 100 (never). Default: 85."),
        ("write-protect", "PERCENT", false, "When so much of a disk or of its metadata slots is in use, only volumes that were promised room begin new extents (MiB) there; what exists can be overwritten, trimmed and deleted. 50 to 100 (when it is full). Default: 95."),
        ("provisioning", "MODE", false, "reserved (default): a new volume is promised room for its size, or refused. thin: only one that asks for it. For volumes whose creation does not say."),
        ("create-volume", "NAME:SIZE", true, "Create this volume at start unless it exists, for instance demo:1g; repeatable."),
        ("stdio", "EXPORT", false, "Serve one client, whose default export is EXPORT, on the socket that is standard input and output (or on an inherited listening socket, as nbdcopy -- [ blockd ... ] makes one); nothing else is served."),
    ];

    /// <summary>A setting has this name.</summary>
    public static bool IsKnown(string name) => All.Any(s => s.Name == name);

    /// <summary>Checks and completes <paramref name="values"/>. Throws <see cref="SettingException"/>.</summary>
    public static Settings Read(IReadOnlyDictionary<string, IReadOnlyList<string>> values, string defaultDataDir, ulong ramBytes)
    {
        foreach (string name in values.Keys)
        {
            if (!IsKnown(name)) throw SettingsSources.Unknown(name, null);
        }

        string dataDir = Path.GetFullPath(One("data-dir") ?? defaultDataDir);
        string? stdio = One("stdio");
        if (stdio is not null && !VolumeName.IsValid(stdio, out string? stdioFault))
            throw new SettingException("--stdio", stdio, "name a volume: " + stdioFault);

        string? cert = ExistingFile("tls-cert"), key = ExistingFile("tls-key"), ca = ExistingFile("tls-ca");
        if (cert is null != key is null)
            throw new SettingException(cert is null ? "--tls-cert" : "--tls-key", "", "--tls-cert and --tls-key belong together");
        TlsClients clients = Choice("tls-clients", "none", "optional", "required") switch
        {
            "none" => TlsClients.None,
            "optional" => TlsClients.Optional,
            _ => TlsClients.Required,
        };
        if (clients != TlsClients.None && (ca is null || cert is null))
            throw new SettingException("--tls-clients", One("tls-clients")!, "it needs --tls-cert, --tls-key and --tls-ca");
        if (ca is not null && clients == TlsClients.None)
            throw new SettingException("--tls-ca", ca, "it is for --tls-clients optional or required, which are not set");
        bool insecure = Choice("insecure", "false", "true") == "true";
        int loops = Number("loops", 1, 1, 64);

        IReadOnlyList<ListenAddress> nbd = Addresses("nbd", ["127.0.0.1:10809", "unix:" + Path.Combine(dataDir, "nbd.sock")]);
        IReadOnlyList<ListenAddress> iscsi = Addresses("iscsi", ["127.0.0.1:3260"], Portal);
        if (iscsi.FirstOrDefault(a => a.Tcp is null) is { } notTcp) throw new SettingException("--iscsi", notTcp.ToString(), PortalHelp);
        string? chap = ExistingFile("iscsi-chap");
        string prefix = One("iscsi-prefix") ?? "iqn.2026-11.org.blockserver";
        if (!IscsiName.TryNormalize(prefix, out string normal) || normal != prefix || prefix.Length > 150)
            throw new SettingException("--iscsi-prefix", prefix, "write an iSCSI name in lower case of at most 150 characters, for instance iqn.2026-11.org.example");
        IReadOnlyList<ListenAddress> api = Addresses("api", ["127.0.0.1:49180"]);
        if (!insecure)
        {
            if (clients != TlsClients.Required && nbd.FirstOrDefault(a => !a.IsLocal) is { } open)
                throw new SettingException("--nbd", open.ToString(), BeyondHelp);
            if (api.FirstOrDefault(a => !a.IsLocal) is { } openApi)
            {
                if (cert is null) throw new SettingException("--api", openApi.ToString(), "an address beyond loopback needs HTTPS: give --tls-cert and --tls-key, or say --insecure");
            }
        }

        return new Settings
        {
            DataDir = dataDir,
            Nbd = stdio is null ? nbd : [],
            IsNbdDefault = Many("nbd") is null,
            Iscsi = stdio is null ? iscsi : [],
            IsIscsiDefault = Many("iscsi") is null,
            IscsiPrefix = prefix,
            IscsiChap = chap,
            Api = stdio is null ? api : [],
            IsApiAlwaysTls = IsApiAlwaysTls(),
            StoreSizeBytes = Size("store-size", StoreBytesMin, 16 * Units.TiB - Units.MiB),
            Durability = Choice("durability", "flush", "ack") == "ack" ? Durability.Ack : Durability.Flush,
            Engine = Choice("engine", "auto", "io_uring", "aio"),
            MetadataRamBytes = Size("metadata-ram", Units.MiB, Units.VolumeBytesMax) ?? Math.Max(ramBytes / 8, 16 * Units.MiB),
            RelayoutBytesPerSecond = RelayoutRate(),
            MoveBytesPerSecond = Size("move-rate", Units.MiB, Units.TiB) ?? Units.TiB,
            DrainsFailed = Choice("drain-failed", "on", "off") == "on",
            ScrubPeriod = TimeSpan.FromDays(Number("scrub-period", 14, 0, 3650)),
            ScrubBytesPerSecond = Size("scrub-rate", Units.MiB, Units.TiB) ?? 20 * Units.MiB,
            Loops = loops,
            BusyPollMicros = Number("busy-poll", loops < Environment.ProcessorCount ? 50 : 0, 0, 1000),
            BackgroundNice = Number("background-nice", 5, 0, 19),
            Connections = Number("connections", 256, 1, 65536),
            ConnectionsPerAddress = Number("connections-per-address", 32, 1, 65536),
            Limits = new ClientLimits
            {
                Negotiating = Number("connections-negotiating", 64, 1, 65536),
                NegotiationSeconds = Number("negotiation-wait", 10, 1, 600),
                StallSeconds = Number("stall-wait", 60, 1, 3600),
                LoopBytes = Size("loop-memory", 64 * Units.MiB, 64 * Units.GiB) ?? 256 * Units.MiB,
                IscsiSessions = Number("iscsi-sessions", 64, 1, 4096),
                IscsiCommands = Number("iscsi-commands", 128, 1, 1024),
                IscsiWindowBytes = Size("iscsi-window", 64 * Units.KiB, 64 * Units.MiB) ?? 16 * Units.MiB,
                IscsiPingSeconds = Number("iscsi-ping", 5, 1, 3600),
                IscsiPingWaitSeconds = Number("iscsi-ping-wait", 90, 1, 3600),
            },
            StopWaitSeconds = Number("stop-wait", 30, 1, 3600),
            LowSpacePercent = Number("low-space", 10, 0, 50),
            MetadataWarnPercent = Number("metadata-warn", 85, 1, 100),
            WriteProtectPercent = Number("write-protect", 95, 50, 100),
            IsThinByDefault = Choice("provisioning", "reserved", "thin") == "thin",
            DiskShareBytes = One("disk-share") == "off" ? 0 : Size("disk-share", 64 * Units.KiB, Units.GiB) ?? DiskShare.InsideBytesMax,
            TlsCert = cert,
            TlsKey = key,
            TlsCa = ca,
            TlsClients = clients,
            Tls = TlsMode(),
            Insecure = insecure,
            CreateVolumes = [.. (Many("create-volume") ?? []).Select(Volume)],
            Stdio = stdio,
        };

        IReadOnlyList<string>? Many(string name) => values.TryGetValue(name, out IReadOnlyList<string>? found) && found.Count > 0 ? found : null;

        string? One(string name)
        {
            IReadOnlyList<string>? found = Many(name);
            if (found is null) return null;
            if (found.Count > 1) throw new SettingException("--" + name, string.Join(' ', found), "it may be given once");
            return found[0].Length > 0 ? found[0] : throw new SettingException("--" + name, "", "a value is needed");
        }

        string Choice(string name, params string[] allowed)
        {
            string value = One(name) ?? allowed[0];
            return allowed.Contains(value) ? value : throw new SettingException("--" + name, value, "allowed: " + string.Join(", ", allowed));
        }

        ulong? Size(string name, ulong least, ulong most)
        {
            if (One(name) is not { } text) return null;
            if (!SizeText.TryParse(text, out ulong bytes, out string reason)) throw new SettingException("--" + name, text, reason);
            return bytes >= least && bytes <= most ? bytes
                : throw new SettingException("--" + name, text, $"allowed: {SizeText.Format(least)} to {SizeText.Format(most)}");
        }

        ulong RelayoutRate()
        {
            ulong rate = Size("relayout-rate", Units.MiB, Units.TiB) ?? 64 * Units.MiB;
            if (Choice("relayout", "on", "off") == "on") return rate;
            return One("relayout-rate") is not { } text ? 0UL : throw new SettingException("--relayout-rate", text, "it contradicts --relayout off");
        }

        bool IsApiAlwaysTls()
        {
            if (Choice("api-tls", "beyond", "always") == "beyond") return false;
            return cert is not null ? true : throw new SettingException("--api-tls", "always", "it needs --tls-cert and --tls-key");
        }

        NbdTlsMode TlsMode()
        {
            string text = One("tls") is null ? "" : Choice("tls", "off", "optional", "required");
            if (text is "" or "off" && cert is null) return NbdTlsMode.None;
            if (cert is null) throw new SettingException("--tls", text, "it needs --tls-cert and --tls-key");
            bool isOpen = !insecure && nbd.Any(a => !a.IsLocal);
            if (text == "off" && (isOpen || clients != TlsClients.None))
                throw new SettingException("--tls", text, "it contradicts " + (isOpen ? "an --nbd address beyond loopback" : "--tls-clients"));
            return text switch
            {
                "off" => NbdTlsMode.None,
                "optional" => NbdTlsMode.Optional,
                "required" => NbdTlsMode.Required,
                _ => isOpen || clients == TlsClients.Required ? NbdTlsMode.Required : NbdTlsMode.Optional,
            };
        }

        int Number(string name, int normal, int least, int most)
        {
            if (One(name) is not { } text) return normal;
            return int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number) && number >= least && number <= most
                ? number : throw new SettingException("--" + name, text, $"allowed: {least} to {most}");
        }

        string? ExistingFile(string name)
        {
            string? path = One(name);
            return path is null || File.Exists(path) ? path : throw new SettingException("--" + name, path, "there is no such file");
        }

        IReadOnlyList<ListenAddress> Addresses(string name, string[] defaults, Func<string, string, ListenAddress>? read = null)
        {
            IReadOnlyList<string> texts = Many(name) ?? defaults;
            if (!texts.Contains("none")) return [.. texts.Select(t => (read ?? Address)(name, t))];
            return texts.Count == 1 ? [] : throw new SettingException("--" + name, string.Join(' ', texts), "none excludes every other address");
        }
    }

    private static ListenAddress Portal(string name, string text)
    {
        int comma = text.LastIndexOf(',');
        if (comma < 0) return Address(name, text);
        bool isGroup = ushort.TryParse(text.AsSpan(comma + 1), NumberStyles.None, CultureInfo.InvariantCulture, out ushort group)
            && group is >= 1 and <= Cluster.TargetDirectory.PortalGroupMax;
        return isGroup ? Address(name, text[..comma]) with { Group = group } : throw new SettingException("--" + name, text, PortalHelp);
    }

    private static ListenAddress Address(string name, string text)
    {
        if (text.StartsWith("unix:", StringComparison.Ordinal))
        {
            string path = text["unix:".Length..];
            if (path.Length == 0) throw new SettingException("--" + name, text, AddressHelp);
            path = Path.GetFullPath(path);
            // sun_path holds 108 bytes with its end mark.
            return System.Text.Encoding.UTF8.GetByteCount(path) <= 107 ? new ListenAddress(null, path)
                : throw new SettingException("--" + name, text, "the path of a unix socket has at most 107 bytes");
        }

        bool hasPort = text.LastIndexOf(':') > text.LastIndexOf(']') && text.Count(c => c == ':') is 1 or > 1;
        string host = hasPort ? text[..text.LastIndexOf(':')] : text;
        if (host.Contains(':', StringComparison.Ordinal) && !host.StartsWith('[')) hasPort = false;
        if (host == "localhost") text = "127.0.0.1" + text[host.Length..];
        return hasPort && IPEndPoint.TryParse(text, out IPEndPoint? endPoint) ? new ListenAddress(endPoint, null)
            : throw new SettingException("--" + name, text, AddressHelp);
    }

    private static WantedVolume Volume(string text)
    {
        int colon = text.IndexOf(':', StringComparison.Ordinal);
        if (colon <= 0) throw new SettingException("--create-volume", text, "write NAME:SIZE, for instance demo:1g");
        if (!VolumeName.IsValid(text[..colon], out string? reason)) throw new SettingException("--create-volume", text, reason);
        if (!SizeText.TryParse(text[(colon + 1)..], out ulong bytes, out string sizeReason))
            throw new SettingException("--create-volume", text, sizeReason);
        return bytes is >= Units.VolumeBytesMin and <= Units.VolumeBytesMax ? new WantedVolume(text[..colon], bytes)
            : throw new SettingException("--create-volume", text, "a volume has 1 MiB to 64 TiB");
    }
}

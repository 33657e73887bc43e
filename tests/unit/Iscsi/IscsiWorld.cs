using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>A portal with one target on a simulated loop; initiators are made by <see cref="Connect"/>.</summary>
internal sealed class IscsiWorld : IIscsiTargets
{
    public const string TargetName = "iqn.2026-11.org.example:disk";
    public const string InitiatorName = "iqn.2026-11.org.example:client";

    private readonly IscsiTarget _discovery;

    public IscsiWorld(ulong seed = 1, IscsiOptions? options = null)
    {
        Loop = new SimLoop(seed);
        Options = options ?? new IscsiOptions();
        Scsi = new MemoryTarget(Loop, 64 << 10);
        Target = new IscsiTarget(Loop, Scsi, this, Options);
        _discovery = new IscsiTarget(Loop, null, this, Options);
    }

    public SimLoop Loop { get; }

    public IscsiOptions Options { get; }

    public MemoryTarget Scsi { get; }

    public IscsiTarget Target { get; }

    public IscsiAuthentication? Authentication { get; set; }

    public IscsiAuthentication? Discovery { get; set; }

    public string? MovedTo { get; set; }

    public bool IsForbidden { get; set; }

    public int TargetCount { get; set; } = 1;

    public IscsiLookup Find(string targetName, string initiatorName, string peer)
    {
        if (targetName != TargetName) return new(IscsiLoginStatus.NotFound);
        if (IsForbidden) return new(IscsiLoginStatus.AuthorizationFailure);
        if (MovedTo is not null) return new(IscsiLoginStatus.MovedTemporarily, null, MovedTo);
        return new(IscsiLoginStatus.Success, new IscsiTargetEntry { Name = TargetName, Alias = "a disk", Authentication = Authentication });
    }

    public IReadOnlyList<IscsiListing> List(string initiatorName, string? user, string peer) =>
        [new(TargetName, ["127.0.0.1:3260,1"]), .. Enumerable.Range(1, TargetCount - 1).Select(
            i => new IscsiListing($"{TargetName}{i}", [$"127.0.0.1:3260,1"]))];

    public IscsiClient Connect(int windowBytes = 256 << 10)
    {
        (SimConnection client, SimConnection server) = SimConnection.Pair(Loop, windowBytes);
        var login = new IscsiLogin(Loop, server, this, Options);
        return new IscsiClient(this, client, login, ServeAsync(login).AsTask());
    }

    /// <summary>Everybody has left and everything was given back.</summary>
    public void CheckClean()
    {
        Check.That(Loop.RunUntil(() => Target.Sessions.Count == 0));
        Check.That(Loop.Buffers.LentCount == 0);
        Check.That(Scsi.Nexuses.Count == 0);
    }

    public static byte[] Pattern(int length, int seed)
    {
        var bytes = new byte[length];
        new SeededRandom((ulong)seed).Fill(bytes);
        return bytes;
    }

    public static byte[] Text(params string[] pairs) => Encoding.UTF8.GetBytes(string.Concat(pairs.Select(p => p + "\0")));

    private async ValueTask<string> ServeAsync(IscsiLogin login)
    {
        IscsiNegotiated? negotiated = await login.RunAsync();
        if (negotiated is null) return login.EndReason!;
        return await (negotiated.Login.IsDiscovery ? _discovery : Target).ServeAsync(negotiated);
    }
}

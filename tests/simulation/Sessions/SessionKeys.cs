using BlockServer.Core;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>What an initiator offers in a login, drawn from a seed, and what was agreed on.</summary>
internal sealed class SessionKeys
{
    private static readonly int[] Lengths = [512, 1024, 4096, 8192, 16384, 65536, 262144];

    public SessionKeys(IRandom random)
    {
        HeaderDigest = random.NextChance(0.4);
        DataDigest = random.NextChance(0.4);
        InitialR2T = random.NextChance(0.5);
        ImmediateData = random.NextChance(0.5);
        MaxBurst = Lengths[random.NextBelow(Lengths.Length)];
        FirstBurst = Math.Min(MaxBurst, Lengths[random.NextBelow(Lengths.Length)]);
        MaxReceive = Lengths[random.NextBelow(Lengths.Length)];
        MaxOutstandingR2T = 1 + random.NextBelow(8);
        MaxConnections = random.NextChance(0.5) ? 1 : 2 + random.NextBelow(3);
        HasSecurityStage = random.NextChance(0.3);
    }

    public bool HeaderDigest { get; init; }

    public bool DataDigest { get; init; }

    public bool InitialR2T { get; init; }

    public bool ImmediateData { get; init; }

    public int MaxBurst { get; init; }

    public int FirstBurst { get; init; }

    /// <summary>Longest data segment that the initiator takes.</summary>
    public int MaxReceive { get; init; }

    /// <summary>Longest data segment that the target takes; from its answer.</summary>
    public int MaxSend { get; private set; } = 8192;

    public int MaxOutstandingR2T { get; init; }

    public int MaxConnections { get; init; }

    public bool HasSecurityStage { get; init; }

    /// <summary>What one connection may transfer in one command, so that it takes a bounded number of PDUs.</summary>
    public int TransferBytesMax => Math.Min(512 << 10, 48 * Math.Min(MaxBurst, MaxReceive));

    /// <summary>The keys of the operational stage; those of the session are the leading connection's.</summary>
    public string Offer(bool isLeading)
    {
        string own = $"HeaderDigest={Digest(HeaderDigest)}\0DataDigest={Digest(DataDigest)}\0MaxRecvDataSegmentLength={MaxReceive}\0";
        return !isLeading ? own : own
            + $"InitialR2T={(InitialR2T ? "Yes" : "No")}\0ImmediateData={(ImmediateData ? "Yes" : "No")}\0"
            + $"MaxBurstLength={MaxBurst}\0FirstBurstLength={FirstBurst}\0MaxOutstandingR2T={MaxOutstandingR2T}\0"
            + $"MaxConnections={MaxConnections}\0ErrorRecoveryLevel=0\0";
    }

    /// <summary>Checks the answers: the target takes what is offered here. A sentence, or null.</summary>
    public string? Agree(IReadOnlyDictionary<string, string> answers, bool isLeading)
    {
        if (answers.TryGetValue("MaxRecvDataSegmentLength", out string? declared))
            MaxSend = int.Parse(declared, System.Globalization.CultureInfo.InvariantCulture);
        List<(string Key, string Value)> expected = [("HeaderDigest", Digest(HeaderDigest)), ("DataDigest", Digest(DataDigest))];
        if (isLeading)
        {
            expected.Add(("InitialR2T", InitialR2T ? "Yes" : "No"));
            expected.Add(("ImmediateData", ImmediateData ? "Yes" : "No"));
            expected.Add(("MaxBurstLength", $"{MaxBurst}"));
            expected.Add(("FirstBurstLength", $"{FirstBurst}"));
            expected.Add(("MaxOutstandingR2T", $"{MaxOutstandingR2T}"));
            expected.Add(("MaxConnections", $"{MaxConnections}"));
        }

        foreach ((string key, string value) in expected)
        {
            if (answers.GetValueOrDefault(key) != value) return $"{key} was answered {answers.GetValueOrDefault(key)}, offered {value}";
        }

        return null;
    }

    private static string Digest(bool isOn) => isOn ? "CRC32C" : "None";
}

namespace BlockServer.Protocols.Iscsi;

/// <summary>What a login agreed on; starts with the defaults of RFC 7143, section 13. Lengths are bytes, times seconds.</summary>
public sealed class IscsiParameters
{
    /// <summary>Headers carry a CRC32C.</summary>
    public bool HeaderDigest { get; internal set; }

    /// <summary>Data segments carry a CRC32C.</summary>
    public bool DataDigest { get; internal set; }

    /// <summary>Connections of the session.</summary>
    public int MaxConnections { get; internal set; } = 1;

    /// <summary>No unsolicited Data-Out PDUs.</summary>
    public bool InitialR2T { get; internal set; } = true;

    /// <summary>Commands may carry data.</summary>
    public bool ImmediateData { get; internal set; } = true;

    /// <summary>Largest data segment that the initiator takes.</summary>
    public int InitiatorMaxRecvDataSegmentLength { get; internal set; } = 8192;

    /// <summary>Largest data segment that we take: declared by us.</summary>
    public int TargetMaxRecvDataSegmentLength { get; internal set; } = 8192;

    /// <summary>Longest sequence of Data-In, or of Data-Out for one R2T.</summary>
    public int MaxBurstLength { get; internal set; } = 262144;

    /// <summary>Most unsolicited data of a command, immediate data included.</summary>
    public int FirstBurstLength { get; internal set; } = 65536;

    /// <summary>Least time before a reconnection.</summary>
    public int DefaultTime2Wait { get; internal set; } = 2;

    /// <summary>How long tasks are kept after a drop; nothing is kept here.</summary>
    public int DefaultTime2Retain { get; internal set; } = 20;

    /// <summary>R2Ts of one command at once.</summary>
    public int MaxOutstandingR2T { get; internal set; } = 1;
}

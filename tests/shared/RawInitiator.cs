using System.Buffers.Binary;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;

namespace BlockServer.Tests;

/// <summary>One answer to a command.</summary>
internal sealed record RawReply(byte Status, byte[] Data, byte[] Sense)
{
    /// <summary>ASC and ASCQ, 0 without sense data.</summary>
    public int Code => Sense.Length < 14 ? 0 : Sense[12] << 8 | Sense[13];
}

/// <summary>
/// A small iSCSI initiator over a real socket: one connection, no digests, one command at a time with immediate data. It says
/// what the tools do not let one say: names, session ids, reservations.
/// </summary>
internal sealed class RawInitiator : IDisposable
{
    private readonly TcpClient _client = new();
    private readonly NetworkStream _stream;
    private readonly string _initiator;
    private readonly string? _target;
    private readonly ulong _isid;
    private uint _cmdSn = 1, _expStatSn, _tag;

    /// <summary>Connects and logs in; <see cref="Status"/> is the outcome. Without a target: a discovery session.</summary>
    public RawInitiator(
        int port, string? target, string initiator = "iqn.2026-11.org.example:one", ulong isid = 0x400001370000,
        string? user = null, string? secret = null, string? mutualSecret = null)
    {
        (_initiator, _target, _isid) = (initiator, target, isid);
        _client.Connect(IPAddress.Loopback, port);
        _client.NoDelay = true;
        _stream = _client.GetStream();
        _stream.ReadTimeout = 20_000;
        LogIn(user, secret, mutualSecret);
    }

    /// <summary>Class and detail of the login's answer; -1 when the connection was closed instead.</summary>
    public int Status { get; private set; } = -1;

    /// <summary>Commands that the target's last answer to the login permitted.</summary>
    public uint WindowCommands { get; private set; }

    /// <summary>What the target said during the login.</summary>
    public Dictionary<string, string> Keys { get; } = new(StringComparer.Ordinal);

    /// <summary>The target proved itself.</summary>
    public bool IsTargetProven { get; private set; }

    /// <summary>Asynchronous events that came.</summary>
    public List<byte> Events { get; } = [];

    /// <summary>Runs a command given in hexadecimal.</summary>
    public RawReply Send(string cdb, byte[]? data = null, int expected = 0, ushort lun = 0)
    {
        byte[] bytes = Convert.FromHexString(cdb.Replace(" ", "", StringComparison.Ordinal));
        byte[] bhs = new byte[48];
        bhs[0] = 0x01;
        bhs[1] = (byte)(0x81 | (data is null ? 0 : 0x20) | (expected > 0 ? 0x40 : 0));
        BinaryPrimitives.WriteUInt16BigEndian(bhs.AsSpan(8), lun);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(16), ++_tag);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(20), (uint)(data?.Length ?? expected));
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(24), _cmdSn++);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(28), _expStatSn);
        bytes.CopyTo(bhs, 32);
        Write(bhs, data ?? []);
        var input = new MemoryStream();
        while (true)
        {
            (byte[] head, byte[] body) = Read() ?? throw new IOException("the target closed the connection");
            switch (head[0] & 0x3F)
            {
                case 0x25:
                    input.Write(body);
                    if ((head[1] & 1) != 0) return new RawReply(head[3], input.ToArray(), []);
                    break;
                case 0x21:
                    return new RawReply(head[3], input.ToArray(), body.Length > 2 ? body[2..] : []);
            }
        }
    }

    /// <summary>Sends a command until no unit attention is left; the attentions (ASC and ASCQ) in order.</summary>
    public List<int> TakeAttentions(ushort lun = 0)
    {
        var codes = new List<int>();
        for (RawReply ready = Send("000000000000", lun: lun); ready.Status == 2 && (ready.Sense[2] & 0x0F) == 6; ready = Send("000000000000", lun: lun))
            codes.Add(ready.Code);
        return codes;
    }

    /// <summary>SendTargets: names, each with its addresses.</summary>
    public List<(string Name, List<string> Addresses)> SendTargets(string which = "All")
    {
        byte[] bhs = new byte[48];
        (bhs[0], bhs[1]) = (0x04, 0x80);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(16), ++_tag);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(20), uint.MaxValue);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(24), _cmdSn++);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(28), _expStatSn);
        Write(bhs, Encoding.UTF8.GetBytes($"SendTargets={which}\0"));
        (byte[] _, byte[] text) = Read() ?? throw new IOException("the target closed the connection");
        var found = new List<(string Name, List<string> Addresses)>();
        foreach (string pair in Encoding.UTF8.GetString(text).Split('\0', StringSplitOptions.RemoveEmptyEntries))
        {
            if (pair.StartsWith("TargetName=", StringComparison.Ordinal)) found.Add((pair["TargetName=".Length..], []));
            else if (pair.StartsWith("TargetAddress=", StringComparison.Ordinal)) found[^1].Addresses.Add(pair["TargetAddress=".Length..]);
        }

        return found;
    }

    /// <summary>The next event of the target, waited for up to 20 s.</summary>
    public byte TakeEvent()
    {
        while (Events.Count == 0)
        {
            if (Read(wantsAnswer: false) is null) throw new IOException("the target closed the connection");
        }

        byte first = Events[0];
        Events.RemoveAt(0);
        return first;
    }

    /// <summary>Logs the session out; the answer's response code.</summary>
    public byte LogOut()
    {
        byte[] bhs = new byte[48];
        (bhs[0], bhs[1]) = (0x46, 0x80);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(16), ++_tag);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(24), _cmdSn);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(28), _expStatSn);
        Write(bhs, []);
        return (Read() ?? throw new IOException("the target closed the connection")).Head[2];
    }

    /// <summary>True when the target has closed the connection, false when it has not within 20 s.</summary>
    public bool IsClosed()
    {
        try
        {
            // A session that goes on is pinged and would be read for ever.
            for (long until = Environment.TickCount64 + 20_000; Environment.TickCount64 < until;)
            {
                if (Read(wantsAnswer: false) is null) return true;
            }

            return false;
        }
        catch (IOException e)
        {
            return e.InnerException is not SocketException { SocketErrorCode: SocketError.TimedOut };
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _stream.Dispose();
        _client.Dispose();
    }

    private void LogIn(string? user, string? secret, string? mutualSecret)
    {
        string names = $"InitiatorName={_initiator}\0" + (_target is null ? "SessionType=Discovery\0" : $"TargetName={_target}\0SessionType=Normal\0");
        if (user is not null)
        {
            if (!Round(0x00, names + "AuthMethod=CHAP\0") || !Round(0x00, "CHAP_A=7\0")) return;
            byte[] challenge = Convert.FromHexString(Keys["CHAP_C"][2..]), ours = RandomNumberGenerator.GetBytes(24);
            byte id = byte.Parse(Keys["CHAP_I"], CultureInfo.InvariantCulture);
            string proof = $"CHAP_N={user}\0CHAP_R=0x{Convert.ToHexString(Respond(id, secret!, challenge))}\0";
            if (mutualSecret is not null) proof += $"CHAP_I=9\0CHAP_C=0x{Convert.ToHexString(ours)}\0";
            if (!Round(0x81, proof)) return;
            IsTargetProven = mutualSecret is not null && Keys.TryGetValue("CHAP_R", out string? answer)
                && Convert.FromHexString(answer[2..]).AsSpan().SequenceEqual(Respond(9, mutualSecret, ours));
            names = "";
        }

        Round(0x87, names + "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0");
    }

    private static byte[] Respond(byte id, string secret, byte[] challenge) =>
        SHA256.HashData([id, .. Encoding.UTF8.GetBytes(secret), .. challenge]);

    private bool Round(byte flags, string text)
    {
        byte[] bhs = new byte[48];
        (bhs[0], bhs[1]) = (0x43, flags);
        BinaryPrimitives.WriteUInt64BigEndian(bhs.AsSpan(8), _isid << 16);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(24), _cmdSn);
        BinaryPrimitives.WriteUInt32BigEndian(bhs.AsSpan(28), _expStatSn);
        Write(bhs, Encoding.UTF8.GetBytes(text));
        if (Read() is not { } answer) return false;
        foreach (string pair in Encoding.UTF8.GetString(answer.Body).Split('\0', StringSplitOptions.RemoveEmptyEntries))
        {
            string[] parts = pair.Split('=', 2);
            Keys[parts[0]] = parts[1];
        }

        Status = answer.Head[36] << 8 | answer.Head[37];
        ReadOnlySpan<byte> numbers = answer.Head.AsSpan(28); // ExpCmdSN and MaxCmdSN
        WindowCommands = BinaryPrimitives.ReadUInt32BigEndian(numbers[4..]) - BinaryPrimitives.ReadUInt32BigEndian(numbers) + 1;
        return Status == 0;
    }

    private void Write(byte[] bhs, byte[] data)
    {
        (bhs[5], bhs[6], bhs[7]) = ((byte)(data.Length >> 16), (byte)(data.Length >> 8), (byte)data.Length);
        _stream.Write([.. bhs, .. data, .. new byte[-data.Length & 3]]);
    }

    /// <summary>The next PDU; where an answer is wanted, none that is a ping or an event. Null at the end.</summary>
    private (byte[] Head, byte[] Body)? Read(bool wantsAnswer = true)
    {
        while (true)
        {
            byte[] head = new byte[48];
            if (_stream.ReadAtLeast(head, 48, throwOnEndOfStream: false) < 48) return null;
            int length = head[5] << 16 | head[6] << 8 | head[7];
            byte[] body = new byte[(length + 3) & ~3];
            if (_stream.ReadAtLeast(body, body.Length, throwOnEndOfStream: false) < body.Length) return null;
            bool isPing = head[0] == 0x20;
            bool counts = !isPing && !(head[0] == 0x25 && (head[1] & 1) == 0);
            if (counts) _expStatSn = BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(24)) + 1;
            if (head[0] == 0x32) Events.Add(head[36]);
            if (isPing && BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(20)) is not uint.MaxValue and uint transferTag)
            {
                byte[] answer = new byte[48];
                (answer[0], answer[1]) = (0x40, 0x80);
                BinaryPrimitives.WriteUInt32BigEndian(answer.AsSpan(16), uint.MaxValue);
                BinaryPrimitives.WriteUInt32BigEndian(answer.AsSpan(20), transferTag);
                BinaryPrimitives.WriteUInt32BigEndian(answer.AsSpan(24), _cmdSn);
                BinaryPrimitives.WriteUInt32BigEndian(answer.AsSpan(28), _expStatSn);
                Write(answer, []);
            }

            bool isAnswer = !isPing && head[0] != 0x32;
            if (isAnswer || !wantsAnswer) return (head, isAnswer ? body[..length] : []);
        }
    }
}

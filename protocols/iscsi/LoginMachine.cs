using System.Buffers;
using System.Globalization;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi;

/// <summary>What follows from a login request.</summary>
public enum LoginVerdict
{
    /// <summary>A response was written; send it and read on.</summary>
    Continue,

    /// <summary>A refusal was written; send it and close.</summary>
    Refused,

    /// <summary>As refused, and the credentials were wrong: answer late.</summary>
    RefusedForCredentials,

    /// <summary>Close without an answer.</summary>
    Close,

    /// <summary>Agreed. Nothing was written: the session must be found first, then <see cref="LoginMachine.Finish"/>.</summary>
    Agreed,
}

/// <summary>
/// The login of one connection (RFC 7143, section 6), target side. Pure: requests go in, responses come out; no clock and
/// no socket. Nothing that an initiator sends makes it throw.
/// </summary>
public sealed partial class LoginMachine(IIscsiTargets targets, IscsiOptions options, IRandom random, string peer)
{
    private readonly ArrayBufferWriter<byte> _text = new();
    private readonly ArrayBufferWriter<byte> _answer = new();
    private readonly List<(string Key, string Value)> _pairs = [];
    private readonly Dictionary<string, string> _seen = new(StringComparer.Ordinal);
    private LoginRequestPdu _first, _now;
    private IscsiStage _stage = IscsiStage.Security;
    private int _requests;
    private uint _statSn;
    private bool _isNamed, _hasDeclared, _isAuthenticated;

    /// <summary>What was agreed on so far.</summary>
    public IscsiParameters Parameters { get; } = new();

    /// <summary>Initiator's name, lower case.</summary>
    public string InitiatorName { get; private set; } = "";

    /// <summary>A discovery session.</summary>
    public bool IsDiscovery { get; private set; }

    /// <summary>The target of a normal session.</summary>
    public IscsiTargetEntry? Target { get; private set; }

    /// <summary>CHAP name that was proven, or null.</summary>
    public string? User { get; private set; }

    /// <summary>Initiator's part of the session id.</summary>
    public ulong Isid => _first.Isid;

    /// <summary>Session to join, or 0.</summary>
    public ushort Tsih => _first.Tsih;

    /// <summary>Connection id.</summary>
    public ushort Cid => _first.Cid;

    /// <summary>First command number.</summary>
    public uint CmdSn => _first.CmdSn;

    /// <summary>Number of the next status.</summary>
    public uint StatSn => _statSn;

    /// <summary>Why it was refused, one line.</summary>
    public string? Fault { get; private set; }

    /// <summary>Takes one PDU: its header and its data segment (without padding), and appends whole response PDUs to
    /// <paramref name="output"/>.</summary>
    public LoginVerdict OnPdu(ReadOnlySpan<byte> bhs, ReadOnlySpan<byte> data, IBufferWriter<byte> output)
    {
        IscsiHeader header = IscsiHeader.Read(bhs);
        if (header.Opcode != IscsiOpcode.LoginRequest)
        {
            // The first PDU decides whether this is an initiator at all; later the answer helps.
            Fault = "not a login request";
            return _requests == 0 ? LoginVerdict.Close : Refuse(IscsiLoginStatus.InvalidDuringLogin, Fault, output);
        }

        _now = LoginRequestPdu.Read(bhs);
        if (_requests++ == 0) Begin();
        if (FaultOf(header) is { } wrong) return Refuse(wrong.Status, wrong.Why, output);
        if (_text.WrittenCount + data.Length > options.TextBytesMax)
            return Refuse(IscsiLoginStatus.InitiatorError, "the text is too long", output);
        _text.Write(data);
        if (_now.IsContinued)
        {
            Respond(false, output);
            return LoginVerdict.Continue;
        }

        _pairs.Clear();
        string? fault = IscsiText.TryRead(_text.WrittenSpan, _pairs) ?? NoteKeys();
        _text.Clear();
        if (fault is not null) return Refuse(IscsiLoginStatus.InitiatorError, fault, output);
        return Negotiate(output);
    }

    /// <summary>Writes the last response: success with the session's handle and numbers, or a refusal.</summary>
    public void Finish(IscsiLoginStatus status, ushort tsih, uint expCmdSn, uint maxCmdSn, IBufferWriter<byte> output)
    {
        if (status != IscsiLoginStatus.Success)
        {
            _answer.Clear();
            Write(false, status, Tsih, expCmdSn, maxCmdSn, output);
            return;
        }

        Write(true, status, tsih, expCmdSn, maxCmdSn, output);
    }

    private void Begin()
    {
        _first = _now;
        _stage = _now.Current;
        _statSn = _now.ExpStatSn;
    }

    private (IscsiLoginStatus Status, string Why)? FaultOf(IscsiHeader header)
    {
        if (_requests > options.LoginPdusMax) return (IscsiLoginStatus.InitiatorError, "too many login requests");
        if (!header.IsImmediate) return (IscsiLoginStatus.InitiatorError, "a login request without the immediate bit");
        if (header.AhsBytes != 0) return (IscsiLoginStatus.InitiatorError, "a login request with additional headers");
        if (_now.VersionMin != 0) return (IscsiLoginStatus.UnsupportedVersion, "the initiator speaks newer versions only");
        if (_now.IsContinued && _now.IsTransit) return (IscsiLoginStatus.InitiatorError, "T and C together");
        if (_now.Current is not (IscsiStage.Security or IscsiStage.Operational))
            return (IscsiLoginStatus.InitiatorError, "an unknown stage");
        if (_now.Current != _stage) return (IscsiLoginStatus.AuthenticationFailure, "a stage out of order");
        if (_now.IsTransit && (_now.Next <= _now.Current || (int)_now.Next == 2))
            return (IscsiLoginStatus.AuthenticationFailure, "a transition out of order");
        bool isSame = _now.Isid == _first.Isid && _now.Tsih == _first.Tsih && _now.Tag == _first.Tag && _now.Cid == _first.Cid
            && _now.CmdSn == _first.CmdSn;
        return isSame ? null : (IscsiLoginStatus.InitiatorError, "the identity changed during login");
    }

    /// <summary>A key may be said once in a login; the names may be repeated as they were.</summary>
    private string? NoteKeys()
    {
        foreach ((string key, string value) in _pairs)
        {
            if (_seen.TryAdd(key, value)) continue;
            bool isName = key is "InitiatorName" or "TargetName" or "SessionType" or "InitiatorAlias";
            if (!isName || _seen[key] != value) return "a key was said twice";
        }

        return _seen.Count > IscsiText.PairsMax ? "too many keys" : null;
    }

    private LoginVerdict Negotiate(IBufferWriter<byte> output)
    {
        _answer.Clear();
        if (!_isNamed)
        {
            if (TakeNames() is { } wrong) return Refuse(wrong.Status, wrong.Why, output);
            _isNamed = true;
        }

        if (_stage == IscsiStage.Security)
        {
            LoginVerdict verdict = NegotiateSecurity(output);
            if (verdict != LoginVerdict.Agreed) return verdict;
        }
        else
        {
            if (!_isAuthenticated && Authentication is not null)
                return Refuse(IscsiLoginStatus.AuthenticationFailure, "authentication was skipped", output);
            if (NegotiateOperational() is { } fault) return Refuse(IscsiLoginStatus.InitiatorError, fault, output);
        }

        bool mayLeave = _stage == IscsiStage.Operational || _isAuthenticated;
        bool transits = _now.IsTransit && mayLeave;
        if (transits && _now.Next == IscsiStage.FullFeature)
        {
            Parameters.FirstBurstLength = Math.Min(Parameters.FirstBurstLength, Parameters.MaxBurstLength);
            return LoginVerdict.Agreed;
        }

        Respond(transits, output);
        if (transits) _stage = _now.Next;
        return LoginVerdict.Continue;
    }

    private IscsiAuthentication? Authentication => IsDiscovery ? targets.Discovery : Target!.Authentication;

    private (IscsiLoginStatus Status, string Why)? TakeNames()
    {
        string type = _seen.GetValueOrDefault("SessionType", "Normal");
        if (type is not ("Normal" or "Discovery"))
            return (IscsiLoginStatus.SessionTypeNotSupported, "an unknown session type");
        IsDiscovery = type == "Discovery";
        if (!_seen.TryGetValue("InitiatorName", out string? name))
            return (IscsiLoginStatus.MissingParameter, "InitiatorName is missing");
        if (!IscsiName.TryNormalize(name, out string initiator))
            return (IscsiLoginStatus.InitiatorError, "InitiatorName is no iSCSI name");
        InitiatorName = initiator;
        if (IsDiscovery)
        {
            return Tsih == 0 ? null : (IscsiLoginStatus.CannotInclude, "a discovery session has one connection");
        }

        if (!_seen.TryGetValue("TargetName", out string? targetName))
            return (IscsiLoginStatus.MissingParameter, "TargetName is missing");
        if (!IscsiName.TryNormalize(targetName, out string wanted))
            return (IscsiLoginStatus.NotFound, "TargetName is no iSCSI name");
        IscsiLookup found = targets.Find(wanted, initiator, peer);
        if (found.Status is IscsiLoginStatus.MovedPermanently or IscsiLoginStatus.MovedTemporarily && found.MovedTo is not null)
            IscsiText.Write(_answer, "TargetAddress", found.MovedTo);
        if (found.Status != IscsiLoginStatus.Success) return (found.Status, $"target {wanted}: {found.Status}");
        Target = found.Entry!;
        if (Target.Alias is not null) IscsiText.Write(_answer, "TargetAlias", Target.Alias);
        IscsiText.Write(_answer, "TargetPortalGroupTag", Target.PortalGroup.ToString(CultureInfo.InvariantCulture));
        return null;
    }

    private string? NegotiateOperational()
    {
        foreach ((string key, string value) in _pairs)
        {
            if (IsName(key)) continue;
            if (IsOfSecurity(key)) return "a security key in the operational stage";
            if (value is "NotUnderstood" or "Irrelevant" or "Reject") continue; // answers to what we declared
            KeyVerdict verdict = OperationalKeys.Take(key, value, options, Parameters, IsDiscovery, Tsih == 0, out string answer);
            if (verdict == KeyVerdict.Taken || key.StartsWith("X#", StringComparison.Ordinal)) continue;
            IscsiText.Write(_answer, key, verdict == KeyVerdict.Unknown ? "NotUnderstood" : answer);
        }

        if (_hasDeclared) return null;
        _hasDeclared = true;
        Parameters.TargetMaxRecvDataSegmentLength = options.MaxRecvDataSegmentLength;
        IscsiText.Write(
            _answer, "MaxRecvDataSegmentLength", options.MaxRecvDataSegmentLength.ToString(CultureInfo.InvariantCulture));
        return null;
    }

    private static bool IsName(string key) => key is "InitiatorName" or "TargetName" or "SessionType" or "InitiatorAlias";

    private static bool IsOfSecurity(string key) =>
        key is "AuthMethod" or "CHAP_A" or "CHAP_I" or "CHAP_C" or "CHAP_N" or "CHAP_R";

    private LoginVerdict Refuse(IscsiLoginStatus status, string why, IBufferWriter<byte> output)
    {
        Fault = why;
        bool isMoved = status is IscsiLoginStatus.MovedPermanently or IscsiLoginStatus.MovedTemporarily;
        if (!isMoved) _answer.Clear();
        Write(false, status, Tsih, CmdSn, CmdSn, output);
        return LoginVerdict.Refused;
    }

    private void Respond(bool transits, IBufferWriter<byte> output) =>
        Write(transits, IscsiLoginStatus.Success, Tsih, CmdSn, CmdSn, output);

    /// <summary>The answers of one round fit one PDU: 64 keys of 63 bytes and their answers are less than 8 KiB.</summary>
    private void Write(
        bool transits, IscsiLoginStatus status, ushort tsih, uint expCmdSn, uint maxCmdSn, IBufferWriter<byte> output)
    {
        int length = _now.IsContinued ? 0 : _answer.WrittenCount;
        Check.That(length <= IscsiWire.LoginDataBytesMax);
        Span<byte> pdu = output.GetSpan(IscsiWire.BhsSize + length + 3);
        pdu[..(IscsiWire.BhsSize + length + 3)].Clear();
        new LoginResponsePdu(
            transits, false, _now.Current, _now.Next, _first.Isid, tsih, _now.Tag,
            new IscsiNumbers(_statSn, expCmdSn, maxCmdSn), status).WriteTo(pdu, length);
        _answer.WrittenSpan[..length].CopyTo(pdu[IscsiWire.BhsSize..]);
        output.Advance(IscsiWire.BhsSize + length + IscsiWire.PadOf(length));
        if (status == IscsiLoginStatus.Success) _statSn++;
    }
}
